package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// mostBroken is how often in a row a stream may break, or not open, before it is
// given up: about a minute and a half, in which a service has started again.
const mostBroken = 20

// Final tells whether nothing more becomes of a generation.
func (s GenerationStatus) Final() bool {
	return s == GenerationStatusSucceeded || s == GenerationStatusFailed || s == GenerationStatusCanceled
}

// Follow reads the event stream until the generation has ended. When it breaks
// it is opened again where it ended, also after the service was away. Between
// two states come generations of which only ID, Status, Progress and Queue are told.
func (c *Client) Follow(ctx context.Context, id string, show func(Generation)) error {
	var last *string
	err := errors.New("it breaks again and again")
	for broken := 0; broken < mostBroken; {
		if broken > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(min(c.Pause<<(broken-1), 10*c.Pause)):
			}
		}
		broken++
		res, failed := c.StreamGeneration(ctx, id, &StreamGenerationParams{LastEventID: last})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failed != nil {
			if !Passing(failed) {
				return failed
			}
			err = failed
			continue
		}
		if res.StatusCode == http.StatusNoContent {
			return res.Body.Close()
		}
		ended := false
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			field, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch field {
			case "id":
				last = &value
			case "data":
				var g Generation
				if json.Unmarshal([]byte(value), &g) != nil {
					continue
				}
				broken = 1 // one pause, should it break here
				show(g)
				ended = ended || g.Status.Final()
			}
		}
		_ = res.Body.Close()
		if ended || ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("its events cannot be followed, ask for it later: %w", err)
}
