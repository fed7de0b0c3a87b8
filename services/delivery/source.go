package delivery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/egress"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// sourcesEvery is how often the sources and pools are read anew.
const sourcesEvery = time.Second

// defaultPool is where mail leaves from that has no pool of its own.
const defaultPool = "default"

// families says which of IPv4 and IPv6 an address or a route has.
type families uint8

const (
	onlyIPv4 families = 1 << iota
	onlyIPv6
	eitherFamily = onlyIPv4 | onlyIPv6
)

func familyOf(a netip.Addr) families {
	if a.Unmap().Is4() {
		return onlyIPv4
	}
	return onlyIPv6
}

// familiesOf returns the families that the hosts of a route have addresses of.
func familiesOf(route *mail.Route) (f families) {
	for _, h := range route.Hosts {
		for _, a := range h.Addresses {
			f |= familyOf(a)
		}
	}
	return f
}

// source is an address, or one of each family, that mail leaves from. It never
// changes: what an operator changes makes a new one.
type source struct {
	store.Source
	four, six egress.Way // by which the addresses of a family are reached from here
	reach     families   // that can be used now
	trouble   string     // why a family cannot be used; "" if all can
}

// here is this machine as it is: the system chooses the address.
var here = &source{reach: eitherFamily}

// way returns how a connection to an address is made.
func (s *source) way(to netip.Addr) egress.Way {
	if familyOf(to) == onlyIPv4 {
		return s.four
	}
	return s.six
}

// pool is sources that share some of the mail. It never changes.
type pool struct {
	name    string
	members []member
}

// member is a source of a pool, and its share.
type member struct {
	source *source
	weight int
}

// anywhere is the pool of an installation that names no sources.
var anywhere = &pool{members: []member{{here, 1}}}

// sources is where mail leaves from, as of lately. It never changes.
type sources struct {
	from    reading
	byName  map[string]*source
	pools   map[string]*pool
	tenants map[string]string
	blocks  map[blockKey]store.SourceBlock
	warmUps map[warmUpKey][]store.WarmUpDay
}

// reading is all that sources are made of.
type reading struct {
	store.Sources
	has map[netip.Addr]bool // the addresses that this machine has
}

type blockKey struct {
	source string
	site   mail.Site
}

type warmUpKey struct{ schedule, provider string }

// makeSources makes sources of what was read. A source that has not changed
// stays the same one.
func makeSources(r reading, self mail.WorkerID, before *sources) *sources {
	all := &sources{
		from: r, byName: map[string]*source{}, pools: map[string]*pool{}, tenants: r.Tenants,
		blocks: map[blockKey]store.SourceBlock{}, warmUps: map[warmUpKey][]store.WarmUpDay{},
	}
	for _, src := range r.Sources.Sources {
		s := makeSource(src, r, self)
		if before != nil {
			if old := before.byName[src.Name]; old != nil && *old == *s {
				s = old
			}
		}
		all.byName[src.Name] = s
	}
	for _, m := range r.Members {
		p := all.pools[m.Pool]
		if p == nil {
			p = &pool{name: m.Pool}
			all.pools[m.Pool] = p
		}
		p.members = append(p.members, member{all.byName[m.Source], int(m.Weight)})
	}
	if all.pools[defaultPool] == nil {
		all.pools[defaultPool] = anywhere
	}
	for _, b := range r.Blocks {
		all.blocks[blockKey{b.Source, b.Site}] = b
	}
	for _, d := range r.WarmUps {
		k := warmUpKey{d.Schedule, d.Provider}
		all.warmUps[k] = append(all.warmUps[k], d)
	}
	return all
}

// makeSource finds out how the addresses of a source are reached: by its
// proxy, from here, or through a worker that has them.
func makeSource(src store.Source, r reading, self mail.WorkerID) *source {
	s := &source{Source: src}
	var trouble []string
	for _, f := range []struct {
		family families
		addr   netip.Addr
		way    *egress.Way
	}{{onlyIPv4, src.IPv4, &s.four}, {onlyIPv6, src.IPv6, &s.six}} {
		if !f.addr.IsValid() {
			continue
		}
		way, err := wayFrom(src, f.addr, r, self)
		if err != nil {
			trouble = append(trouble, err.Error())
			continue
		}
		*f.way = way
		s.reach |= f.family
	}
	s.trouble = strings.Join(trouble, ", ")
	return s
}

func wayFrom(src store.Source, addr netip.Addr, r reading, self mail.WorkerID) (egress.Way, error) {
	switch {
	case src.Egress != "":
		way, err := egress.Parse(src.Egress)
		way.Local = addr
		return way, err
	case r.has[addr]:
		return egress.Way{Local: addr}, nil
	}
	for _, l := range r.Listeners {
		for _, a := range l.Addresses {
			if a == addr && l.Worker != self {
				return egress.Way{Kind: egress.SOCKS5, Local: addr, Proxy: l.Address, User: src.Name, Password: l.Key}, nil
			}
		}
	}
	return egress.Way{}, fmt.Errorf("no worker that can be reached has %s", addr)
}

// poolOf returns the name of the pool that mail leaves from: that of its
// route, else that of its tenant.
func (w *worker) poolOf(route, tenant string) string {
	if route != "" {
		return route
	}
	if name := w.sources.Load().tenants[tenant]; name != "" {
		return name
	}
	return defaultPool
}

// nowhere is a pool that no longer has a source.
var nowhere = &pool{}

// pool returns the pool of a name.
func (w *worker) pool(name string) *pool {
	if p := w.sources.Load().pools[name]; p != nil {
		return p
	}
	return nowhere
}

// runSources keeps the sources up to date until ctx is done.
func (w *worker) runSources(ctx context.Context) error {
	tick := time.NewTicker(sourcesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := w.readSources(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("sources not read", "worker_id", w.id, "error", err)
		}
	}
}

// readSources takes over what operators have changed and which addresses this
// and other workers have now.
func (w *worker) readSources(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, storeWithin)
	defer cancel()
	all, err := w.store.Sources(within)
	if err != nil {
		return err
	}
	r := reading{all, map[netip.Addr]bool{}}
	var addresses []netip.Addr
	for _, src := range all.Sources {
		for _, a := range []netip.Addr{src.IPv4, src.IPv6} {
			if a.IsValid() && src.Egress == "" && w.config.hasAddress(a) {
				r.has[a] = true
				addresses = append(addresses, a)
			}
		}
	}
	before := w.sources.Load()
	if before != nil && reflect.DeepEqual(before.from, r) {
		return nil
	}
	if before == nil && len(addresses) > 0 || before != nil && !reflect.DeepEqual(before.from.has, r.has) {
		l := store.Listener{Worker: w.id, Addresses: addresses, Address: w.config.advertised(w.egressOn), Key: w.egressKey}
		if err := w.store.Advertise(within, l); err != nil {
			return err
		}
	}
	w.sources.Store(makeSources(r, w.id, before))
	for _, s := range w.sitesIn(nil) {
		w.setAside(s.resource())
	}
	return nil
}

// listenEgress opens the egress listener, if there is to be one. That comes
// before its address is told: who finds nobody there leaves our sources alone
// for a while.
func (w *worker) listenEgress(ctx context.Context) (err error) {
	if w.config.EgressListen == "" {
		return nil
	}
	if w.egressOn, err = (&net.ListenConfig{}).Listen(ctx, "tcp", w.config.EgressListen); err != nil {
		return errors.Join(errEgressListener, fmt.Errorf("POSTRIDER_EGRESS_LISTEN: %w", err))
	}
	return nil
}

// serveEgress lets other workers use the addresses that this one has.
func (w *worker) serveEgress(ctx context.Context) error {
	if w.egressOn == nil {
		return nil
	}
	l := &egress.Listener{Key: w.egressKey, Max: int(w.config.Connections), MayReach: w.config.mayReach,
		Source: func(name string, target netip.Addr) (netip.Addr, bool) {
			s := w.sources.Load().byName[name]
			if s == nil || s.Egress != "" {
				return netip.Addr{}, false
			}
			local := s.IPv6
			if familyOf(target) == onlyIPv4 {
				local = s.IPv4
			}
			return local, w.sources.Load().from.has[local]
		}}
	return l.Serve(ctx, w.egressOn)
}

// errEgressListener ends the process: its configuration cannot work here.
var errEgressListener = errors.New("egress listener")

func newEgressKey() string { return rand.Text() }

// sourceOf returns the source of a name, even if it is not registered.
func (w *worker) sourceOf(name string) *source {
	if s := w.sources.Load().byName[name]; s != nil {
		return s
	}
	return &source{Source: store.Source{Name: name}, trouble: "it is not registered"}
}

// add hands jobs that are claimed to their site. Those that no source can
// reach a host for are delayed, and tried again by the schedule.
func (w *worker) add(s *site, jobs []*job, reserved ...places) {
	asides, unservable := s.add(jobs, reserved)
	w.setAside(asides)
	for _, u := range unservable {
		w.unload(u.job.load)
		answer := smtpclient.Answer{Phase: mail.PhaseQueue, Err: u.err}
		w.settles.in <- w.delayed(u.job.request, answer)
	}
}

// setAside lays jobs aside, each with why it waits.
func (w *worker) setAside(asides []aside) {
	for _, a := range asides {
		if len(a.jobs) > 0 {
			w.aside.in <- a
		}
	}
}
