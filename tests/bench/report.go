package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// report prints the medians of the runs of one workload, and the ratios of
// each system to the first.
func report(out io.Writer, w workload, systems []string, results map[string][]result) {
	fmt.Fprintf(out, "\n## Workload %s: %s; %d messages, %d sessions\n\n", w.name, w.about, w.messages, sessions)
	fmt.Fprintln(out, "| MTA | e2e msg/s (min-max) | x "+systems[0]+" | ingest msg/s | CPU s/1000 (min-max) | flushes/1000 | MiB written/1000 | PSS MiB |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|")
	base := median(pick(results[systems[0]], e2e))
	for _, s := range systems {
		rs := results[s]
		fmt.Fprintf(out, "| %s | %s | %.2f | %.0f | %s | %.0f | %.1f | %.0f |\n", s,
			spread(pick(rs, e2e), "%.0f"), median(pick(rs, e2e))/base,
			median(pick(rs, func(r result) float64 { return r.ingest })),
			spread(pick(rs, cpu), "%.2f"),
			median(pick(rs, func(r result) float64 { return r.flushes })),
			median(pick(rs, func(r result) float64 { return r.written })),
			median(pick(rs, func(r result) float64 { return sum(r.pss) })))
	}
	for _, s := range systems {
		rs := results[s]
		if len(rs[0].cpu) < 2 {
			continue
		}
		fmt.Fprintf(out, "\n%s by process, CPU s/1000 and PSS MiB:", s)
		for i, c := range rs[0].cpu {
			fmt.Fprintf(out, " %s %.3f %.0f,", c.part,
				median(pick(rs, func(r result) float64 { return r.cpu[i].value })),
				median(pick(rs, func(r result) float64 { return r.pss[i].value })))
		}
		fmt.Fprintln(out)
	}
}

// line prints one run as soon as it is over.
func line(out io.Writer, w workload, round int, r result) {
	var by []string
	for _, c := range r.cpu {
		by = append(by, fmt.Sprintf("%s %.3f", c.part, c.value))
	}
	fmt.Fprintf(out, "%s round %d %-14s ingest %6.0f/s  end to end %6.0f/s  CPU %.3f s/1000 (%s)  flushes %.0f/1000  PSS %.0f MiB\n",
		w.name, round, r.system, r.ingest, r.e2e, sum(r.cpu), strings.Join(by, ", "), r.flushes, sum(r.pss))
}

func e2e(r result) float64 { return r.e2e }
func cpu(r result) float64 { return sum(r.cpu) }

func pick(rs []result, f func(result) float64) []float64 {
	var xs []float64
	for _, r := range rs {
		xs = append(xs, f(r))
	}
	return xs
}

func sum(cs []cost) float64 {
	total := 0.0
	for _, c := range cs {
		total += c.value
	}
	return total
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func spread(xs []float64, format string) string {
	return fmt.Sprintf(format+" ("+format+"-"+format+")", median(xs), slices.Min(xs), slices.Max(xs))
}
