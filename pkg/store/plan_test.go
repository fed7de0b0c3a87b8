package store_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// TestHotPlans holds the plans of the statements on the hot path to what they
// must be on an empty, never analysed partition: one look-up in the primary
// key for each row of the batch.
func TestHotPlans(t *testing.T) {
	f := setup(t)
	placeholder := regexp.MustCompile(`\$\d+`)
	byKey := regexp.MustCompile(`Index Cond: \(\(queue_id = \S+\) AND \((recipient_no|chunk_no) = \S+\)\)`)
	for name, sql := range store.HotStatements(mail.NewQueueID()) {
		t.Run(name, func(t *testing.T) {
			plan, err := f.Explain(t.Context(), sql, len(distinct(placeholder.FindAllString(sql, -1))))
			if err != nil {
				t.Fatal(err)
			}
			if !byKey.MatchString(plan) || strings.Contains(plan, "Seq Scan") {
				t.Errorf("the plan does not look up rows by their key:\n%s", plan)
			}
		})
	}
}

// TestBacklogIsNotRead: what looks at waiting mail reads the ends of an index,
// however much waits behind them. (Expire reads what is due and not rung yet.)
func TestBacklogIsNotRead(t *testing.T) {
	const waiting, most = 40_000, 200
	f := setup(t)
	f.deepen(t, waiting)
	f.exec(t, `UPDATE recipients SET slot = 3, site = 'deep.example', tenant = CASE WHEN random() < 0.5 THEN 'a' ELSE 'b' END
		WHERE random() < 0.5`)
	f.exec(t, "UPDATE recipients SET next_attempt_at = now() - interval '1 second' WHERE slot IS NULL AND random() < 0.5")
	f.exec(t, "UPDATE recipients SET rung = true WHERE slot IS NULL AND random() < 0.5")
	f.exec(t, "ANALYZE recipients")
	actual := regexp.MustCompile(`actual rows=(\d+) loops=(\d+)`)
	for name, st := range f.BacklogStatements("deep.example") {
		t.Run(name, func(t *testing.T) {
			plan, err := st.Analyze(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			found := actual.FindAllStringSubmatch(plan, -1)
			if len(found) == 0 {
				t.Fatalf("no figures in the plan:\n%s", plan)
			}
			for _, m := range found {
				n, _ := strconv.Atoi(m[1])
				loops, _ := strconv.Atoi(m[2])
				if n*loops > most {
					t.Fatalf("%d rows were read, want at most %d:\n%s", n*loops, most, plan)
				}
			}
		})
	}
}

func distinct(words []string) map[string]bool {
	set := map[string]bool{}
	for _, w := range words {
		set[w] = true
	}
	return set
}
