package store_test

import (
	"regexp"
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

func distinct(words []string) map[string]bool {
	set := map[string]bool{}
	for _, w := range words {
		set[w] = true
	}
	return set
}
