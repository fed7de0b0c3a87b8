package shaping

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed presets/*.toml
var presets embed.FS

// Presets returns the versions of the presets, oldest first.
func Presets() []string {
	entries, err := presets.ReadDir("presets")
	if err != nil {
		panic(err) // embedded
	}
	var all []string
	for _, e := range entries {
		all = append(all, strings.TrimSuffix(e.Name(), ".toml"))
	}
	slices.Sort(all)
	return all
}

// Preset returns the text of a version of the presets.
func Preset(version string) (Text, error) {
	text, err := presets.ReadFile("presets/" + version + ".toml")
	if err != nil {
		return Text{}, fmt.Errorf("presets %q: there are %s, and none", version, strings.Join(Presets(), ", "))
	}
	return Text{"presets " + version, string(text)}, nil
}
