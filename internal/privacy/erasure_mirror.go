package privacy

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/objects"
)

const (
	// mirrorPrefix is where the object store has the journal's lines, some to an object,
	// by day and time: whoever restores both databases from before still finds them there.
	mirrorPrefix   = "journal/"
	mirrorPatience = 20 * time.Second // of a start, with a store that does not answer
	mirrorMost     = 1 << 20          // bytes of an object, which has eraseBatch lines
)

// line is an entry of the journal with its kind.
type line struct {
	Kind    string `db:"kind" json:"kind"`
	ID      string `db:"id" json:"id"`
	Erasure string `db:"erasure" json:"erasure,omitempty"`
	Opens   []byte `db:"secret" json:"opens,omitempty"` // hash of what opens the receipt
	At      int64  `db:"at" json:"at"`
}

// lines are an object of the mirror. Whoever may write to the store must not be able
// to have anybody erased: it has a keyed hash.
type lines struct {
	Lines json.RawMessage `json:"lines"`
	MAC   []byte          `json:"mac"`
}

// mirrorDay begins the names of a day's objects.
func mirrorDay(at time.Time) string { return at.UTC().Format(time.DateOnly) + "/" }

func mirrorFloor(at time.Time) string { return mirrorDay(at) + db.FloorID("jou", at) }

func mirrorKey(name string) string { return mirrorPrefix + name + ".json" }

func mirrorName(key string) string {
	return strings.TrimSuffix(strings.TrimPrefix(key, mirrorPrefix), ".json")
}

func (s *Service) mirrorMAC(name string, text []byte) []byte {
	return s.Vault.MAC("journal", append([]byte(name+" "), text...))
}

// mirror writes into the object store what the journal has and the mirror does not.
func (s *Service) mirror(ctx context.Context) error {
	for {
		var some []line
		err := s.Keys.Select(ctx, &some, `SELECT kind, id, erasure, secret, at FROM erasure_journal WHERE mirror = '' ORDER BY kind, id LIMIT ?`, eraseBatch)
		if err != nil {
			return fmt.Errorf("read the journal for its mirror: %w", err)
		}
		if len(some) == 0 {
			return nil
		}
		now := s.Clock.Later()
		name := mirrorDay(now) + db.NewID("jou", now)
		text, err := json.Marshal(some)
		if err != nil {
			return err
		}
		content, err := json.Marshal(lines{text, s.mirrorMAC(name, text)})
		if err != nil {
			return err
		}
		if err := s.Objects.Put(ctx, mirrorKey(name), bytes.NewReader(content), int64(len(content))); err != nil {
			return fmt.Errorf("write the journal's mirror: %w", err)
		}
		args := []any{name}
		for _, l := range some {
			args = append(args, l.ID) // one of a kind is never that of another
		}
		if _, err := s.Keys.Exec(ctx, `UPDATE erasure_journal SET mirror = ? WHERE mirror = '' AND id IN (`+db.Marks(len(some))+`)`, args...); err != nil {
			return fmt.Errorf("note the journal's mirror: %w", err)
		}
	}
}

// tendMirror is mirror, with a figure of what is left to be mirrored.
func (s *Service) tendMirror(ctx context.Context) error {
	failed := s.mirror(ctx)
	var left int
	err := s.Keys.Get(ctx, &left, `SELECT count(*) FROM erasure_journal WHERE mirror = ''`)
	if err != nil {
		err = fmt.Errorf("measure the journal's mirror: %w", err)
	} else {
		s.Metrics.unmirrored.Set(float64(left))
	}
	return errors.Join(failed, err)
}

// known are those of the mirror's objects that lines of the journal are in.
func (s *Service) known(ctx context.Context, page []objects.Info) (map[string]bool, error) {
	args := make([]any, len(page))
	for i, o := range page {
		args[i] = mirrorName(o.Key)
	}
	var names []string
	if err := s.Keys.Select(ctx, &names, `SELECT DISTINCT mirror FROM erasure_journal WHERE mirror IN (`+db.Marks(len(args))+`)`, args...); err != nil {
		return nil, fmt.Errorf("look for the journal's mirror: %w", err)
	}
	known := map[string]bool{}
	for _, name := range names {
		known[name] = true
	}
	return known, nil
}

// journalEnd is when lines are so old that no backup from before them lives. It may
// have been made a moment before.
func (s *Service) journalEnd() time.Time {
	return s.Policy.journal().Before(s.Clock.Now())
}

// takeIn gives the key store's journal what the mirror knows and it does not: it was
// restored from before.
func (s *Service) takeIn(ctx context.Context) error {
	taken := 0
	end := s.journalEnd()
	if s.plausible(ctx) != nil {
		end = time.UnixMilli(0) // by this clock, all may be old
	}
	for after := mirrorKey(mirrorFloor(end)); ; {
		asking, cancel := context.WithTimeout(ctx, mirrorPatience)
		page, err := s.Objects.List(asking, mirrorPrefix, after, eraseBatch)
		cancel()
		if err != nil {
			return fmt.Errorf("read the journal's mirror: %w", err)
		}
		if len(page) == 0 {
			break
		}
		after = page[len(page)-1].Key
		known, err := s.known(ctx, page)
		if err != nil {
			return err
		}
		for _, o := range page {
			if o.Hidden || known[mirrorName(o.Key)] {
				continue
			}
			n, err := s.takeLines(ctx, o.Key, end)
			if err != nil {
				return err
			}
			taken += n
		}
	}
	if taken > 0 {
		s.Log.WarnContext(ctx, "the object store knows of erasures or deletions that the key store did not, as if that was restored", "lines", taken)
	}
	return nil
}

// parseLines reads an object of the mirror; nil: it is not this installation's.
func (s *Service) parseLines(name string, content []byte) (some []line) {
	var all lines
	if json.Unmarshal(content, &all) != nil || !hmac.Equal(all.MAC, s.mirrorMAC(name, all.Lines)) || json.Unmarshal(all.Lines, &some) != nil {
		return nil
	}
	return some
}

// takeLines takes in one object of the mirror.
func (s *Service) takeLines(ctx context.Context, key string, end time.Time) (taken int, err error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorPatience)
	defer cancel()
	body, _, err := s.Objects.Get(ctx, key)
	if errors.Is(err, objects.ErrNotExist) {
		return 0, nil // forgotten meanwhile
	}
	if err != nil {
		return 0, fmt.Errorf("read the journal's mirror: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(body, mirrorMost))
	if err = errors.Join(err, body.Close()); err != nil {
		return 0, fmt.Errorf("read the journal's mirror: %w", err)
	}
	name := mirrorName(key)
	some := s.parseLines(name, content)
	if some == nil {
		s.Log.ErrorContext(ctx, "an object of the journal's mirror is not what this installation wrote: it is passed over", "mirror", name)
		return 0, nil
	}
	var args []any
	for _, l := range some {
		if l.At >= end.UnixMilli() { // others were forgotten before
			args = append(args, l.Kind, l.ID, l.Erasure, l.Opens, l.At, name)
		}
	}
	if len(args) == 0 {
		return 0, nil
	}
	n, err := s.Keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, erasure, secret, at, mirror) VALUES `+db.Rows("(?, ?, ?, ?, ?, ?)", len(args)/6)+`
		ON CONFLICT (kind, id) DO UPDATE SET erasure = excluded.erasure, secret = excluded.secret, mirror = excluded.mirror
		WHERE erasure_journal.mirror <> '' AND erasure_journal.mirror < excluded.mirror`, args...)
	if err != nil {
		return 0, fmt.Errorf("take in the journal's mirror: %w", err)
	}
	return int(n), nil
}

// askMirror takes in the mirror once, and again when the key store has gone back since.
func (s *Service) askMirror(ctx context.Context) error {
	s.mirrored.Lock()
	defer s.mirrored.Unlock()
	newest := func() (name string, err error) {
		if err = s.Keys.Get(ctx, &name, `SELECT coalesce(max(mirror), '') FROM erasure_journal`); err != nil {
			err = fmt.Errorf("look for the journal's mirror: %w", err)
		}
		return name, err
	}
	name, err := newest()
	if err != nil {
		return err
	}
	if !s.mirrored.asked || name < s.mirrored.newest {
		if err := s.takeIn(ctx); err != nil {
			return err
		}
		if name, err = newest(); err != nil {
			return err
		}
	}
	s.mirrored.asked, s.mirrored.newest = true, name
	return nil
}

// forgetMirror deletes the mirror's objects whose lines have had their time.
func (s *Service) forgetMirror(ctx context.Context) error {
	end := mirrorKey(mirrorFloor(s.journalEnd()))
	for after := ""; ; {
		page, err := s.Objects.List(ctx, mirrorPrefix, after, eraseBatch)
		if err != nil {
			return fmt.Errorf("read the journal's mirror: %w", err)
		}
		var old []objects.Info
		for _, o := range page {
			if o.Key < end {
				old = append(old, o)
			}
		}
		if len(old) == 0 {
			return nil
		}
		after = old[len(old)-1].Key
		known, err := s.known(ctx, old)
		if err != nil {
			return err
		}
		var keys []string
		for _, o := range old {
			if !known[mirrorName(o.Key)] {
				keys = append(keys, o.Key)
			}
		}
		if err := s.Objects.Delete(ctx, keys...); err != nil {
			return fmt.Errorf("forget the journal's mirror: %w", err)
		}
	}
}
