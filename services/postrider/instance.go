package postrider

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/postrider/postrider/pkg/boot"
)

// location is where a queue is: what every command reads.
type location struct {
	PostgresURL string `envconfig:"POSTGRES_URL" secret:"true" desc:"Postgres 15 or newer that keeps the queue."`
	DataDir     string `envconfig:"DATA_DIR" default:".postrider" desc:"Directory of postrider dev: database, arrivals, logs, spans."`
}

// instance is a running postrider dev, as its file tells the other commands.
type instance struct {
	PID         int    `json:"pid"`
	PostgresURL string `json:"postgres_url"`
	SMTP        string `json:"smtp"`
	HTTP        string `json:"http"`     // health and metrics
	Submit      string `json:"submit"`   // mail by HTTP; "" if nowhere
	Arrivals    string `json:"arrivals"` // directory
	Spans       string `json:"spans"`    // file
	Log         string `json:"log"`      // file
}

func instanceFile(dataDir string) string { return filepath.Join(dataDir, "dev.json") }

// write announces the instance. The file is for its user alone, because the
// URL may have a password.
func (i instance) write(dataDir string) error {
	text, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(instanceFile(dataDir), append(text, '\n'), 0o600)
}

// readInstance returns the instance that runs in the data directory, or
// os.ErrNotExist.
func readInstance(dataDir string) (instance, error) {
	var i instance
	text, err := os.ReadFile(instanceFile(dataDir))
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(text, &i); err != nil {
		return i, fmt.Errorf("%s: %w", instanceFile(dataDir), err)
	}
	if errors.Is(syscall.Kill(i.PID, 0), syscall.ESRCH) {
		return i, os.ErrNotExist // it was killed and could not take its file away
	}
	return i, nil
}

// queueURL returns the URL of the queue: POSTRIDER_POSTGRES_URL, else that of
// the postrider dev in the data directory.
func queueURL() (string, error) {
	var where location
	if err := boot.Load(nil, &where); err != nil {
		return "", err
	}
	if where.PostgresURL != "" {
		return where.PostgresURL, nil
	}
	i, err := readInstance(where.DataDir)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("POSTRIDER_POSTGRES_URL is not set and no postrider dev runs in %s: start it with make run", where.DataDir)
	}
	return i.PostgresURL, err
}

// spanFile returns the span file of the postrider dev in the data directory,
// running or not; "" if there is none.
func spanFile() (string, error) {
	var where location
	if err := boot.Load(nil, &where); err != nil {
		return "", err
	}
	return filepath.Join(where.DataDir, spansName), nil
}
