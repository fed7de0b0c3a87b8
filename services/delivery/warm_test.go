package delivery

import (
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
)

func TestWarmUp(t *testing.T) {
	now := time.Date(2026, 11, 27, 15, 0, 0, 0, time.UTC)
	all := &sources{warmUps: map[warmUpKey][]store.WarmUpDay{
		{"slow", ""}:    {{Day: 1, Messages: 50}, {Day: 2, Messages: 100}, {Day: 5, Messages: 1000}},
		{"slow", "big"}: {{Day: 1, Messages: 10}, {Day: 3, Messages: 20}},
	}}
	on := func(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		name   string
		src    store.Source
		site   mail.Site
		want   int // messages a day; 0: no bound
		notYet bool
	}{
		{"no warm-up", store.Source{}, "mx", 0, false},
		{"not begun", store.Source{WarmUp: "slow"}, "mx", 0, true},
		{"begins tomorrow", store.Source{WarmUp: "slow", WarmUpFrom: on(28)}, "mx", 0, true},
		{"its first day", store.Source{WarmUp: "slow", WarmUpFrom: on(27)}, "mx", 50, false},
		{"its fourth day is like the second", store.Source{WarmUp: "slow", WarmUpFrom: on(24)}, "mx", 100, false},
		{"its last day", store.Source{WarmUp: "slow", WarmUpFrom: on(23)}, "mx", 1000, false},
		{"warm", store.Source{WarmUp: "slow", WarmUpFrom: on(22)}, "mx", 0, false},
		{"two days do not count", store.Source{WarmUp: "slow", WarmUpFrom: on(22), WarmUpPaused: 2}, "mx", 100, false},
		{"blocked from the first day on", store.Source{WarmUp: "slow", WarmUpFrom: on(27), WarmUpPaused: 1}, "mx", 50, false},
		{"a provider of its own", store.Source{WarmUp: "slow", WarmUpFrom: on(25)}, "provider:big/mx.big.test", 20, false},
		{"that provider, warm", store.Source{WarmUp: "slow", WarmUpFrom: on(24)}, "provider:big/mx.big.test", 0, false},
		{"another provider", store.Source{WarmUp: "slow", WarmUpFrom: on(27)}, "provider:other/mx.other.test", 50, false},
		{"a schedule that is not there", store.Source{WarmUp: "gone", WarmUpFrom: on(27)}, "mx", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, notYet := all.warmUpRate(&source{Source: c.src}, c.site, now)
			if got.Events != c.want || notYet != c.notYet || c.want > 0 && got.Period != 24*time.Hour {
				t.Errorf("%+v, not yet %v, want %d in 24 hours, %v", got, notYet, c.want, c.notYet)
			}
			if c.want == 0 && got != (shaping.Rate{}) {
				t.Errorf("%+v, want no bound", got)
			}
		})
	}
}
