package postrider

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/store"
)

// busOverlap is longer than any hint waits in its stream.
const busOverlap = 15 * time.Minute

func busCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "bus",
		Short: "The key that services sign what they put on NATS with",
	}, busRotateCommand())
}

func busRotateCommand() *cobra.Command {
	overlap := busOverlap
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new key; all processes use it within seconds",
		Long: `rotate makes a new key that services sign what they put on NATS with. The keys
before it stay valid for the overlap, so that no hint is refused. The scheduler
rotates once a day by itself. With --overlap 0s the keys before are refused
within seconds, as after a leak: hints that were under way are rung again when
they are due.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if overlap < 0 {
				return usageError{errors.New("--overlap is negative")}
			}
			return withStore(c.Context(), func(db *store.Store) error {
				id, err := db.RotateBusKey(c.Context(), overlap, 0)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "key %d signs from now on; those before are valid for %v\n", id, overlap)
				return err
			})
		},
	}
	c.Flags().DurationVar(&overlap, "overlap", overlap, "how long the keys before stay valid")
	return c
}
