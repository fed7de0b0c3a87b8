package shaping

import (
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// Limits are the values that belong to one source at one site: all mail that
// leaves from the source for the site counts against them, whatever its
// domain. Without sources they are those of the site. Those of default and of a
// provider hold for each site that they concern, as with KumoMTA.
type Limits struct {
	Connections           int  // connection_limit: open at once, 1 or more
	ConnectionRate        Rate // max_connection_rate
	MessageRate           Rate // max_message_rate
	MessagesPerConnection int  // max_deliveries_per_connection, 1 or more
	Ready                 int  // max_ready: requests of the site held in memory, 1 or more
	Homes                 int  // homes: parts of the site, each with a home of its own, 1 to mail.Slots
}

// Shared is a limit that mail counts against besides Limits: all mail whose
// values have one of the same name counts against it together, to whatever
// site and from whatever source. SelectionRate is of each site, but for that of
// a provider.
type Shared struct {
	Name          string
	Connections   int  // open at once; 0 sets no bound
	MessageRate   Rate // of transactions
	SelectionRate Rate // of messages for which a source is chosen
}

// OfProvider reports whether the limit is one of a provider, for one source.
func (l *Shared) OfProvider() bool { return strings.HasPrefix(l.Name, providerSite) }

// Values are all the values for one domain at one site, from one source.
type Values struct {
	Limits
	// SelectionRate is how often the source may be chosen for the site:
	// source_selection_rate. It holds a new source back while it warms up.
	SelectionRate Rate
	// Shared are the limits that hold for more than one source at one site,
	// sorted by name: provider_connection_limit, provider_max_message_rate and
	// provider_source_selection_rate as "provider:NAME/SOURCE" (see
	// Shared.Provider), for all sites of a provider, and those of
	// additional_connection_limits, additional_message_rate_throttles and
	// additional_source_selection_rates under the names of the file.
	Shared []Shared
	// Named is set when a block of the site's or domain's own name set one of
	// the limits, rather than a block that holds for many.
	Named bool

	RecipientsPerTransaction int // max_recipients_per_batch, 1 or more
	// DomainsPerTransaction is max_domains_per_batch, 1 or more: how many
	// domains that the same hosts serve may share a transaction. 0 is one, and
	// any number at a smart host.
	DomainsPerTransaction int
	// Rules are the automation that holds for the replies, lowest layer first.
	Rules []Rule

	Provider         string        // provider_name, else the last provider block that holds, else ""
	IdleTimeout      time.Duration // idle_timeout: a connection without work is kept so long
	Timeouts         Timeouts
	TLS              mail.TLSLevel // enable_tls
	DANE             bool          // enable_dane: TLSA records of the domain's hosts count
	MTASTS           bool          // enable_mta_sts: so does the policy of the domain
	RetrySchedule    retry.Schedule
	MessageLifetime  time.Duration // max_age
	DelayNoticeAfter time.Duration // delay_notice_after
}

// defaults are the values under every layer: FEATURES.md §0, column "ours".
// Retry schedule, lifetime and delay notice have theirs in Config.
func defaults() Values {
	return Values{
		Limits: Limits{
			Connections:           10,
			ConnectionRate:        Rate{Events: 100, Period: time.Minute},
			MessageRate:           Rate{Events: 100, Period: time.Second},
			MessagesPerConnection: 100,
			Ready:                 1000,
			Homes:                 1,
		},
		RecipientsPerTransaction: 100,
		IdleTimeout:              15 * time.Second,
		Timeouts:                 DefaultTimeouts,
		TLS:                      mail.TLSMay,
		DANE:                     true,
		MTASTS:                   true,
	}
}

// Stricter returns the smaller of each pair of limits. It settles what two
// domains of one site say differently.
func (l Limits) Stricter(other Limits) Limits {
	return Limits{
		Connections:           min(l.Connections, other.Connections),
		ConnectionRate:        l.ConnectionRate.Slower(other.ConnectionRate),
		MessageRate:           l.MessageRate.Slower(other.MessageRate),
		MessagesPerConnection: min(l.MessagesPerConnection, other.MessagesPerConnection),
		Ready:                 min(l.Ready, other.Ready),
		Homes:                 min(l.Homes, other.Homes),
	}
}

// Portion returns the limits of one part of a site. A part that would get
// nothing of a limit gets one: see MostParts.
func (l Limits) Portion(p mail.Portion) Limits {
	l.Connections = max(p.Count(l.Connections), 1)
	l.ConnectionRate, l.MessageRate = l.ConnectionRate.Portion(p), l.MessageRate.Portion(p)
	return l
}

// MostParts returns into how many parts the limits can be divided with
// something of each for all.
func (l Limits) MostParts() int {
	return min(l.Connections, l.ConnectionRate.MostParts(), l.MessageRate.MostParts())
}

// draft is Values while the layers are laid over each other.
type draft struct {
	Values
	provider map[string]Shared // by the name of the provider whose block has them
	shared   map[string]Shared // by name
}

// share changes the limit of a name.
func share(limits *map[string]Shared, name string, change func(*Shared)) {
	l := (*limits)[name]
	change(&l)
	if *limits == nil {
		*limits = map[string]Shared{}
	}
	(*limits)[name] = l
}

// finish returns the values for mail from a source.
func (d *draft) finish(o origin) Values {
	for name, l := range d.provider {
		l.Name = providerSite + name + "/" + o.source
		d.Shared = append(d.Shared, l)
	}
	for name, l := range d.shared {
		l.Name = name
		d.Shared = append(d.Shared, l)
	}
	slices.SortFunc(d.Shared, func(a, b Shared) int { return strings.Compare(a.Name, b.Name) })
	return d.Values
}
