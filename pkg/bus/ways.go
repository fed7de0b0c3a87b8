package bus

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/postrider/postrider/pkg/mail"
	pb "github.com/postrider/postrider/proto/postrider/v1"
)

const subjectWays = subjectNotice + "ways"

// Way is where mail for a domain goes, from whatever sender, for a moment.
type Way struct {
	Domain mail.Domain
	Worker mail.WorkerID // the home of the route's site
	Route  *mail.Route
	Valid  time.Duration // from when it is announced
}

// AnnounceWays tells all ingress where mail goes in the next moment. It is not
// stored, and nothing is lost if nobody hears it. Errors: ErrDown, or ctx was
// done before it began.
func (b *Bus) AnnounceWays(ctx context.Context, ways []Way) error {
	return b.publish(ctx, subjectWays, func(f *framer) error {
		for i := range ways {
			if err := f.addWay(&ways[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// WatchWays calls learn with what is announced until ctx is done, and then
// returns nil. One call runs at a time.
func (b *Bus) WatchWays(ctx context.Context, learn func([]Way)) error {
	sub, err := b.subscribe(subjectWays, func(body []byte, age time.Duration) error {
		ways, err := decodeWays(body)
		for i := range ways {
			ways[i].Valid -= age
		}
		learn(ways)
		return err
	})
	if err != nil {
		return fmt.Errorf("watch ways: %w", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // fails only if the connection is closed
	<-ctx.Done()
	return nil
}

// addWay puts the way into the frame.
func (f *framer) addWay(w *Way) error {
	item := &pb.Way{Domain: string(w.Domain), Worker: int32(w.Worker), ValidUs: w.Valid.Microseconds(), Route: encodeRoute(w.Route)}
	if size := itemSize(item); len(f.frame) > 0 && len(f.frame)+size > maxFrame {
		if err := f.flush(); err != nil {
			return err
		}
	}
	return f.appendItem(fieldWays, item)
}

// decodeWays returns the ways of the frame. An error says that there are some
// that it left out.
func decodeWays(frame []byte) ([]Way, error) {
	var in pb.WaysFrame
	if err := proto.Unmarshal(frame, &in); err != nil {
		return nil, fmt.Errorf("%w: ways frame: %w", undecodable, err)
	}
	var wrong error
	ways := make([]Way, 0, len(in.GetWays()))
	for i, w := range in.GetWays() {
		route, err := decodeRoute(w.GetRoute())
		if err != nil {
			wrong = fmt.Errorf("%w: ways frame: way %d: %w", undecodable, i, err)
			continue
		}
		ways = append(ways, Way{mail.Domain(w.GetDomain()), mail.WorkerID(w.GetWorker()), route, time.Duration(w.GetValidUs()) * time.Microsecond})
	}
	return ways, wrong
}
