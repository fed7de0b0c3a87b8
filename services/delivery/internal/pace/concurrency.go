package pace

// initialConnections is where slow start begins: what FEATURES.md §0 found
// that Postfix does.
const initialConnections = 5

// Concurrency is the number of connections that may be open at once: it
// starts low, grows by one with each success up to the limit, and shrinks
// when connections fail. The zero value allows one.
type Concurrency struct {
	limit   int
	allowed int // 1 to limit
}

// SetLimit changes the upper bound.
func (c *Concurrency) SetLimit(limit int) {
	c.limit = max(limit, 1)
	if c.allowed == 0 {
		c.allowed = initialConnections
	}
	c.allowed = min(c.allowed, c.limit)
}

// Allowed returns how many connections may be open now.
func (c *Concurrency) Allowed() int { return max(c.allowed, 1) }

// Restore begins where a predecessor was; 0 is not known.
func (c *Concurrency) Restore(allowed int) {
	if allowed > 0 {
		c.allowed = min(allowed, c.limit)
	}
}

// Succeeded says that a transaction went well.
func (c *Concurrency) Succeeded() { c.allowed = min(c.allowed+1, c.limit) }

// Failed says that a connection could not be made or broke.
func (c *Concurrency) Failed() { c.allowed = max(c.allowed-1, 1) }
