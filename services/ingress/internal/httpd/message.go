package httpd

import "time"

// Message is the JSON form of a request: docs/openapi.json.
type Message struct {
	ReversePath   *string           `json:"reverse_path,omitempty" maxLength:"254" doc:"Address that reports (DSNs) go to. Default: that of sender, else of from. Empty: the null reverse-path."`
	From          Mailbox           `json:"from"`
	Sender        *Mailbox          `json:"sender,omitempty"`
	ReplyTo       []Mailbox         `json:"reply_to,omitempty" maxItems:"50"`
	To            []Mailbox         `json:"to,omitempty" maxItems:"1000" doc:"Recipients of one message, who see each other."`
	Cc            []Mailbox         `json:"cc,omitempty" maxItems:"1000"`
	Bcc           []Mailbox         `json:"bcc,omitempty" maxItems:"1000" doc:"Recipients of the same message whom nobody sees."`
	Recipients    []Recipient       `json:"recipients,omitempty" maxItems:"1000" doc:"Each gets a message of its own: its address in To, its substitutions in subject, texts and headers. Not together with to, cc, bcc. All messages of a request have at most 8 MiB, where each placeholder counts as it stands or as its value, whichever is longer."`
	Substitutions map[string]string `json:"substitutions,omitempty" maxProperties:"1000" doc:"Values for {{name}} that every recipient in recipients has unless it brings its own. Names have up to 64 of A-Z a-z 0-9 _ . -; a name without a value is an error. In html, values are escaped."`
	Subject       string            `json:"subject,omitempty" maxLength:"2000"`
	Text          *string           `json:"text,omitempty" doc:"The text/plain part."`
	HTML          *string           `json:"html,omitempty" doc:"The text/html part."`
	Headers       []HeaderField     `json:"headers,omitempty" maxItems:"100" doc:"More header fields, in this order. Date and Message-ID may be given here; those that have a member of their own, MIME-Version, Content-* and trace fields may not."`
	Attachments   []Attachment      `json:"attachments,omitempty" maxItems:"100"`
	Options
}

// Options are what a request says of the envelope and the queue.
type Options struct {
	Notify    []string   `json:"notify,omitempty" maxItems:"3" enum:"never,success,failure,delay" doc:"What the reverse-path hears of (RFC 3461): never alone, or some of the others. Default: failure and delay."`
	Ret       string     `json:"ret,omitempty" enum:"full,hdrs" doc:"How much of the message a report of a failure returns (RFC 3461)."`
	EnvID     string     `json:"envid,omitempty" maxLength:"100" doc:"Envelope id that reports carry (RFC 3461): printable ASCII."`
	Priority  int16      `json:"priority,omitempty" minimum:"-9" maximum:"9" doc:"Added to the priority of the tenant; higher goes first."`
	Campaign  string     `json:"campaign,omitempty" maxLength:"100" doc:"What the message belongs to, for the queue and its operators; campaigns of a tenant take turns. Printable ASCII."`
	SendAt    *time.Time `json:"send_at,omitempty" doc:"Not sent before; at most 30 days from now."`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"Not tried at or after this time. It can only shorten what is configured."`
}

// Mailbox is an address with the name to show for it.
type Mailbox struct {
	Address string `json:"address" minLength:"3" maxLength:"254" example:"ann@example.com" doc:"Local-part, @ and domain (RFC 5321). International domains become A-labels; a local-part outside ASCII needs SMTPUTF8 on the way."`
	Name    string `json:"name,omitempty" maxLength:"255"`
}

// Recipient gets a message of its own.
type Recipient struct {
	Mailbox
	Substitutions map[string]string `json:"substitutions,omitempty" maxProperties:"1000"`
}

// HeaderField is a header field.
type HeaderField struct {
	Name  string `json:"name" minLength:"1" maxLength:"76" pattern:"^[!-9;-~]+$"`
	Value string `json:"value" maxLength:"10000" doc:"Text outside ASCII becomes encoded-words (RFC 2047), in fields that have addresses only their names; fields for programs, such as List-Unsubscribe, are ASCII. Long values are folded at spaces, or encoded."`
}

// Attachment is a file.
type Attachment struct {
	Filename    string `json:"filename,omitempty" maxLength:"255"`
	ContentType string `json:"content_type,omitempty" maxLength:"255" doc:"Media type with parameters; neither multipart/* nor message/*. Default: application/octet-stream."`
	ContentID   string `json:"content_id,omitempty" maxLength:"255" doc:"Makes it a part that html shows as cid:..., instead of an attachment."`
	Content     string `json:"content" contentEncoding:"base64" doc:"base64 (RFC 4648 section 4)."`
}

// Receipt is the answer to an accepted request.
type Receipt struct {
	Messages []Accepted `json:"messages" nullable:"false" doc:"One, or one for each of recipients, in their order."`
}

// Accepted is one message that is in the queue.
type Accepted struct {
	ID         string   `json:"id" format:"uuid" doc:"Queue id: postrider show ID tells its story."`
	MessageID  string   `json:"message_id,omitempty" doc:"The Message-ID field."`
	Recipients []string `json:"recipients" nullable:"false" doc:"Forward-paths, each once."`
}
