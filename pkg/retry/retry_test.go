package retry_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/retry"
)

const usual = "5m,10m,20m,40m,80m,160m,4h"

func middle() float64 { return 0.5 }

func parse(t interface {
	Helper()
	Fatal(args ...any)
}, text string) retry.Schedule {
	t.Helper()
	s, err := retry.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNextFollowsTheSchedule(t *testing.T) {
	for _, c := range []struct {
		schedule string
		tries    int16
		want     time.Duration
	}{
		{usual, 0, 5 * time.Minute},
		{usual, 1, 10 * time.Minute},
		{usual, 5, 160 * time.Minute},
		{usual, 6, 4 * time.Hour},
		{usual, 7, 4 * time.Hour}, // the last interval repeats
		{usual, 32767, 4 * time.Hour},
		{usual, -1, 5 * time.Minute},
		{"1h*2, 2h*", 1, time.Hour},
		{"1h*2, 2h*", 2, 2 * time.Hour},
		{"1d12h", 0, 36 * time.Hour},
		{"1 day", 9, 24 * time.Hour},
	} {
		got := parse(t, c.schedule).Next(c.tries, middle)
		if got < c.want-time.Microsecond || got > c.want+time.Microsecond {
			t.Errorf("%s after %d tries: got %v, want %v", c.schedule, c.tries, got, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "empty"},
		{"5m,", "empty"},
		{"5", "unit of time"},
		{"5x", "unit of time"},
		{"-5m", "want numbers and units"},
		{"0s", "longer than zero"},
		{"5m*0", "count of 1 or more"},
		{"5m*,10m", "count of 1 or more"},
		{"5m*1001", "more than 1000"},
		{"5m*600,1h*600", "more than 1000"},
		{"11000d", "ten years"},
		{"99999999999999999999m", "numbers and units"},
	} {
		if _, err := retry.Parse(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want one that says %q", c.text, err, c.want)
		}
	}
}

func TestParseNamesEveryWrongInterval(t *testing.T) {
	_, err := retry.Parse("5m,tea,10m,never")
	for _, word := range []string{"tea", "never"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not name %q", err, word)
		}
	}
}

func TestNextStaysWithinJitterAndExpiry(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		minutes := rapid.SliceOfN(rapid.IntRange(1, 10000), 1, 20).Draw(t, "minutes")
		words := make([]string, len(minutes))
		for i, m := range minutes {
			words[i] = retry.Duration(time.Duration(m) * time.Minute).String()
		}
		s := parse(t, strings.Join(words, ","))
		tries := rapid.Int16Range(0, 100).Draw(t, "tries")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))

		step := time.Duration(minutes[min(int(tries), len(minutes)-1)]) * time.Minute
		delay := s.Next(tries, rng.Float64)
		if off := delay - step; off < -step*15/100-1 || off > step*15/100+1 {
			t.Fatalf("delay %v is not within 15 %% of %v", delay, step)
		}
		expiresAt := now.Add(time.Duration(rapid.IntRange(0, 20000).Draw(t, "lifetime")) * time.Minute)
		next := s.NextAttempt(now, expiresAt, tries, rng.Float64)
		if next.After(expiresAt) || next.Before(now) {
			t.Fatalf("next attempt %v is not between %v and %v", next, now, expiresAt)
		}
	})
}

func TestJitterSpreads(t *testing.T) {
	s := parse(t, "100m")
	early, late := 0, 0
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		switch d := s.Next(0, rng.Float64); {
		case d < 95*time.Minute:
			early++
		case d > 105*time.Minute:
			late++
		}
	}
	if early < 200 || late < 200 {
		t.Errorf("of 1000 delays %d are 5 %% early and %d are 5 %% late, want a third each", early, late)
	}
}

func TestTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.SliceOfN(rapid.Int64Range(1, 1e9), 1, 10).Draw(t, "ms")
		var words []string
		for _, m := range ms {
			d := retry.Duration(time.Duration(m) * time.Millisecond)
			back, err := retry.ParseDuration(d.String())
			if err != nil || back != time.Duration(d) {
				t.Fatalf("%v reads back as %v, %v", d, back, err)
			}
			words = append(words, d.String())
		}
		s := parse(t, strings.Join(words, ","))
		if again := parse(t, s.String()); again.String() != s.String() {
			t.Fatalf("%v reads back as %v", s, again)
		}
	})
}

func TestUsualScheduleText(t *testing.T) {
	if got, want := parse(t, usual).String(), "5m,10m,20m,40m,1h20m,2h40m,4h"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := parse(t, "1h*4,4h*").String(), "1h*4,4h"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
