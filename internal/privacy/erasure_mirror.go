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
	mirrorBatch    = 1000             // lines of an object
	mirrorMost     = 1 << 20          // its bytes
	// mirrorAfter is how long a deletion waits for others to be written with. An erasure,
	// which is not complete before, waits for nothing.
	mirrorAfter = time.Minute
	mirrorLate  = 5 * time.Minute // a line that waits for longer is told of
)

// ErrMirrorUnread is that the object store has not told what was erased, deleted or ended: a key
// store that was restored from before does not know it.
var ErrMirrorUnread = errors.New("the object store has not told what was erased, deleted or ended")

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

// waiting is the condition that the mirror lacks a line that is older than d. One from
// the future was written by another clock, and may have waited for long.
func (s *Service) waiting(d time.Duration) (condition string, args []any) {
	now := s.Clock.Now()
	return `mirror = '' AND at NOT BETWEEN ? AND ?`, []any{now.Add(-d).UnixMilli() + 1, now.Add(d).UnixMilli()}
}

// mirror writes into the object store what the journal has and the mirror does not, as
// soon as something is to wait no longer.
func (s *Service) mirror(ctx context.Context) error {
	for wrote := false; ; wrote = true {
		var some []line
		old, args := s.waiting(mirrorAfter)
		err := s.Keys.Select(ctx, &some, `SELECT kind, id, erasure, secret, at FROM erasure_journal WHERE mirror = ''
			AND EXISTS (SELECT 1 FROM erasure_journal WHERE mirror = '' AND kind = ? OR `+old+`) ORDER BY kind, id LIMIT ?`,
			append(append([]any{journalAccount}, args...), mirrorBatch)...)
		if err != nil {
			return fmt.Errorf("read the journal for its mirror: %w", err)
		}
		if len(some) > 0 || wrote { // what is written after the key store went back would hide that
			if err := s.askMirror(ctx, false); err != nil {
				return err
			}
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
		if err := s.noteMirror(ctx, name, some); err != nil {
			return fmt.Errorf("note the journal's mirror: %w", err)
		}
	}
}

// noteMirror says of lines in which object they are. That of an account may have changed
// since it was read: then it is written again.
func (s *Service) noteMirror(ctx context.Context, name string, some []line) error {
	deleted := []any{name, journalAccount}
	for _, l := range some {
		if l.Kind != journalAccount {
			deleted = append(deleted, l.ID) // one of a kind is never that of another
			continue
		}
		_, err := s.Keys.Exec(ctx, `UPDATE erasure_journal SET mirror = ? WHERE mirror = '' AND kind = ? AND id = ? AND erasure = ? AND secret IS NOT DISTINCT FROM ?`,
			name, l.Kind, l.ID, l.Erasure, l.Opens)
		if err != nil {
			return err
		}
	}
	if len(deleted) == 2 {
		return nil
	}
	_, err := s.Keys.Exec(ctx, `UPDATE erasure_journal SET mirror = ? WHERE mirror = '' AND kind <> ? AND id IN (`+db.Marks(len(deleted)-2)+`)`, deleted...)
	return err
}

// tendMirror is mirror, with a figure of what should be mirrored by now and is not.
func (s *Service) tendMirror(ctx context.Context) error {
	failed := s.mirror(ctx)
	var late int
	condition, args := s.waiting(mirrorLate)
	err := s.Keys.Get(ctx, &late, `SELECT count(*) FROM erasure_journal WHERE `+condition, args...)
	if err != nil {
		err = fmt.Errorf("measure the journal's mirror: %w", err)
	} else {
		s.Metrics.unmirrored.Set(float64(late))
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

// mirrorEnd is journalEnd, when this clock can be believed: otherwise all may seem old.
func (s *Service) mirrorEnd(ctx context.Context) time.Time {
	if s.plausible(ctx) != nil {
		return time.UnixMilli(0)
	}
	return s.journalEnd()
}

// takeIn gives the key store's journal what the mirror knows and it does not: it was
// restored from before.
func (s *Service) takeIn(ctx context.Context) error {
	taken := 0
	end := s.mirrorEnd(ctx)
	for after := mirrorKey(mirrorFloor(end)); ; {
		asking, cancel := context.WithTimeout(ctx, mirrorPatience)
		page, err := s.Objects.List(asking, mirrorPrefix, after, eraseBatch)
		cancel()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMirrorUnread, err)
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
		s.Log.WarnContext(ctx, "the object store knows of erasures, deletions or ends that the key store did not, as if that was restored", "lines", taken)
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
		return 0, fmt.Errorf("%w: %w", ErrMirrorUnread, err)
	}
	content, err := io.ReadAll(io.LimitReader(body, mirrorMost))
	if err = errors.Join(err, body.Close()); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrMirrorUnread, err)
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
		WHERE erasure_journal.mirror <> '' AND erasure_journal.mirror < excluded.mirror
		AND (erasure_journal.erasure <> excluded.erasure OR erasure_journal.secret IS DISTINCT FROM excluded.secret)`, args...)
	if err != nil {
		return 0, fmt.Errorf("take in the journal's mirror: %w", err)
	}
	return int(n), nil
}

// askMirror takes in the mirror once, and again when the key store has gone back since, or
// whenever it is told to.
func (s *Service) askMirror(ctx context.Context, again bool) error {
	m := &s.mirrored
	m.Lock()
	defer m.Unlock()
	newest, there, err := s.newestMirror(ctx, m.newest)
	if err != nil {
		return err
	}
	if m.asked = m.asked && there; again || !m.asked {
		if err := s.takeIn(ctx); err != nil {
			return err
		}
		if newest, _, err = s.newestMirror(ctx, newest); err != nil {
			return err
		}
	}
	m.asked, m.newest = true, newest
	return nil
}

// newestMirror is the newest object that the key store knows, and whether it still knows one
// that was the newest before, which it forgets with time.
func (s *Service) newestMirror(ctx context.Context, before string) (name string, there bool, err error) {
	var row struct {
		Newest string `db:"newest"`
		There  int    `db:"there"`
	}
	err = s.Keys.Get(ctx, &row, `SELECT coalesce(max(mirror), '') AS newest, (SELECT count(*) FROM erasure_journal WHERE mirror = ?) AS there FROM erasure_journal`, before)
	if err != nil {
		return "", false, fmt.Errorf("look for the journal's mirror: %w", err)
	}
	return row.Newest, row.There > 0 || before < mirrorFloor(s.mirrorEnd(ctx)), nil
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
