package mail

import (
	"slices"
	"testing"
)

func TestReplyWithin(t *testing.T) {
	for _, c := range []struct {
		octets   int
		in, want []string
	}{
		{10, []string{"abc", "def"}, []string{"abc", "def"}},
		{6, []string{"abc", "def"}, []string{"abc", "def"}},
		{5, []string{"abc", "def", "ghi"}, []string{"abc", "de"}},
		{3, []string{"abc", "def"}, []string{"abc", ""}},
		{4, []string{"abécd"}, []string{"abé"}},
		{3, []string{"abécd"}, []string{"ab"}},
		{0, []string{"é"}, []string{""}},
		{5, nil, nil},
	} {
		in := slices.Clone(c.in)
		if got := (Reply{Code: 550, Lines: in}).Within(c.octets); !slices.Equal(got.Lines, c.want) || !slices.Equal(in, c.in) {
			t.Errorf("the first %d octets of %q: %q, want %q", c.octets, c.in, got.Lines, c.want)
		}
	}
}
