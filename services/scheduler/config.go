package scheduler

import (
	"errors"
	"time"

	"github.com/postrider/postrider/pkg/retry"
)

// Config is the configuration of the service.
type Config struct {
	HistoryRetention   retry.Duration `envconfig:"HISTORY_RETENTION" default:"7d" desc:"How long messages that are finished stay in the history. Whole days leave; a day with unfinished mail stays."`
	AccountingInterval retry.Duration `envconfig:"ACCOUNTING_INTERVAL" default:"1m" desc:"How often the queue is summed for the accounting metrics. The cost grows with the mail of the last two hours; after a sum that took long, the next waits for twenty times as long as that took."`
}

// Validate reports a configuration that cannot work.
func (c Config) Validate() error {
	var errs []error
	if time.Duration(c.HistoryRetention) < 24*time.Hour {
		errs = append(errs, errors.New("POSTRIDER_HISTORY_RETENTION is shorter than a day"))
	}
	if time.Duration(c.AccountingInterval) < time.Second {
		errs = append(errs, errors.New("POSTRIDER_ACCOUNTING_INTERVAL is shorter than a second"))
	}
	return errors.Join(errs...)
}
