package privacy

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/subject"
)

// KindCompare is the job that compares database and object store; its ref is the
// schedule.
const KindCompare = "retention:compare"

const (
	comparePlan = "objects"
	// unripe is how old an object, or a row, must be before it is missed on the other
	// side: whoever stores one is done by then.
	unripe      = 48 * time.Hour
	comparePage = 500
	pictures    = "images" // the table, and what its objects' keys begin with

	// Orphans are what crashes leave: few. Many are what a wrong, an empty or an old
	// main database makes of living people's pictures, and then none is deleted.
	fewOrphans  = 100 // a crowd of broken attempts, or a day's failed deletions
	orphanShare = 100 // beyond these, one object in so many
)

// A Comparison is what comparing database and object store found.
type Comparison struct {
	At      time.Time `json:"-"`       // when it ended; zero: now
	Objects int       `json:"objects"` // that were looked at
	Orphans int       `json:"orphans"` // that no row needs: deleted
	Refused int       `json:"refused"` // that no row needs, and too many, or of people whom the database does not know: not deleted
	Unknown int       `json:"unknown"` // that are not the service's, or another one's: never deleted
	Missing int       `json:"missing"` // that a row needs and are not there
}

func (s *Service) compareKind() jobs.Kind {
	return jobs.Kind{Name: KindCompare, MaxAttempts: 20, Run: func(ctx context.Context, _ *jobs.Run) error {
		if _, err := s.Compare(ctx); err != nil {
			return jobs.Retry("internal", err)
		}
		return nil
	}}
}

// Compare goes through all objects and all pictures, side by side, in the order of
// their keys, and deletes nothing. What is missing it tells. If it finds a few objects
// that no row needs, it goes through all again, asks the rows anew and deletes these.
func (s *Service) Compare(ctx context.Context) (Comparison, error) {
	if err := s.plausible(ctx); err != nil {
		return Comparison{}, err
	}
	c := &comparison{s: s, old: s.Clock.Now().Add(-unripe)}
	if err := c.all(ctx); err != nil {
		return c.Comparison, err
	}
	if err := c.archives(ctx); err != nil {
		return c.Comparison, err
	}
	found := c.Comparison
	if most := max(fewOrphans, (found.Objects-found.Unknown)/orphanShare); found.Orphans > most {
		found.Orphans, found.Refused = 0, found.Refused+found.Orphans
	} else if found.Orphans > 0 {
		deleting := &comparison{s: s, old: c.old, most: most}
		err := deleting.all(ctx)
		found.Orphans, found.Refused = deleting.Orphans, deleting.Refused
		if err != nil {
			return found, err
		}
	}
	if found.Refused > 0 {
		s.Log.ErrorContext(ctx, "objects have no row, very many of them or of people whom the main database does not know: is it the right one? They are not deleted",
			"objects", found.Objects, "rowless", found.Refused)
	}
	if found.Missing > 0 {
		s.Log.ErrorContext(ctx, "objects of rows are missing", "rows", found.Missing)
	}
	if found.Unknown > 0 {
		s.Log.WarnContext(ctx, "the object store holds what is not this service's: it is left alone", "objects", found.Unknown)
	}
	text, err := json.Marshal(found)
	if err != nil {
		return found, err
	}
	return found, s.swept(ctx, comparePlan, text)
}

type comparison struct {
	Comparison
	s    *Service
	old  time.Time      // what is younger is not missed
	most int            // how many orphans it deletes; 0: it only counts
	here []objects.Info // pictures that are not compared yet
	done group          // up to which they are
}

// all goes once through all objects and all pictures.
func (c *comparison) all(ctx context.Context) error {
	for after := ""; ; {
		page, err := c.s.Objects.List(ctx, "", after, comparePage)
		if err != nil {
			return err
		}
		for _, o := range page {
			after = o.Key
			if err := c.see(ctx, o); err != nil {
				return err
			}
		}
		last := len(page) < comparePage
		if err := c.side(ctx, last); err != nil || last {
			return err
		}
	}
}

// group is a person's generation: all objects of one follow one another.
type group struct{ owner, generation string }

func groupOf(key string) group {
	parts := strings.Split(key, "/")
	return group{parts[1], parts[2]}
}

// see takes one object of the listing.
func (c *comparison) see(ctx context.Context, o objects.Info) error {
	c.Objects++
	kind := c.s.Map.Object(o.Key)
	switch {
	case kind == nil:
		c.Unknown++
	case kind.Nobody != "":
	case strings.HasPrefix(o.Key, pictures+"/"):
		c.here = append(c.here, o)
	case strings.HasPrefix(o.Key, heldPrefix):
		parts := strings.Split(o.Key, "/")
		kept, err := c.s.keeps(ctx, parts[2])
		if err == nil && !kept {
			err = c.drop(ctx, []objects.Info{o})
		}
		return err
	case kind.Table == "exports":
		parts, _ := kind.Key.Match(o.Key)
		attempt, strange := strconv.Atoi(parts["attempt"])
		if strange != nil {
			c.Unknown++
			break
		}
		needed, _, err := c.s.needsArchive(ctx, parts["export"], parts["subject"], attempt)
		if err == nil && !needed {
			err = c.drop(ctx, []objects.Info{o})
		}
		return err
	}
	return nil
}

// side compares what was seen of the pictures with their rows. The objects of the
// last generation may not all have been seen, unless it is the end.
func (c *comparison) side(ctx context.Context, end bool) error {
	seen, until := c.here, group{}
	if !end {
		if len(seen) == 0 {
			return nil
		}
		open := groupOf(seen[len(seen)-1].Key)
		at := slices.IndexFunc(seen, func(o objects.Info) bool { return groupOf(o.Key) == open })
		if at == 0 {
			return nil
		}
		seen, until = seen[:at], groupOf(seen[at-1].Key)
	}
	present := make(map[string]bool, len(seen)) // whether Get finds it
	for _, o := range seen {
		present[o.Key] = !o.Hidden
	}
	needed := map[string]bool{}
	err := c.rows(ctx, c.done, until, func(key string, row map[string]any) error {
		if _, seen := present[key]; seen { // else a store that lost everything would fill the memory
			needed[key] = true
		}
		// Of whoever is being erased objects go before rows, and what a hold keeps lies elsewhere.
		ripe := millisOf(row["created_at"]) < c.old.UnixMilli() && millisOf(row["expires_at"]) > c.s.Clock.Millis() && textOf(row["state"]) == string(subject.Active)
		if present[key] || !ripe || c.most > 0 { // the first time it was told
			return nil
		}
		again, err := c.s.Objects.List(ctx, key, "", 1)
		if err != nil || len(again) > 0 && again[0].Key == key && !again[0].Hidden {
			return err
		}
		if c.Missing++; c.Missing <= 20 {
			c.s.Log.ErrorContext(ctx, "an object is missing", "image", textOf(row["id"]))
		}
		return nil
	})
	if err != nil {
		return err
	}
	var orphans []objects.Info
	for _, o := range seen {
		if !needed[o.Key] {
			orphans = append(orphans, o)
		}
	}
	c.here, c.done = slices.Clone(c.here[len(seen):]), until
	return c.drop(ctx, orphans)
}

// rows goes through the pictures that have content, of the generations behind from
// and up to until (zero: the last), with the keys of each.
func (c *comparison) rows(ctx context.Context, from, until group, f func(key string, row map[string]any) error) error {
	t := c.s.Map.Table(StoreMain, pictures)
	var kinds []*StoredObject
	for i := range c.s.Map.Objects {
		if o := &c.s.Map.Objects[i]; strings.HasPrefix(o.Key.String(), pictures+"/") {
			kinds = append(kinds, o)
		}
	}
	where, args := "(owner, generation_id) > (?, ?)", []any{from.owner, from.generation}
	if until != (group{}) {
		where += " AND (owner, generation_id) <= (?, ?)"
		args = append(args, until.owner, until.generation)
	}
	last := []any{from.owner, from.generation, "~"} // behind every id
	for {
		page, err := c.s.DB.Maps(ctx, fmt.Sprintf(`SELECT id, owner, generation_id, attempt, n, created_at, expires_at,
				(SELECT state FROM subjects WHERE subjects.id = images.owner) AS state FROM images
			WHERE removed_at = 0 AND %s AND (owner, generation_id, id) > (?, ?, ?) ORDER BY owner, generation_id, id LIMIT %d`, where, comparePage),
			append(slices.Clone(args), last...)...)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, row := range page {
			for _, o := range kinds {
				key := o.keyOf(t, row)
				if err := f(key, row); err != nil {
					return err
				}
			}
			last = []any{row["owner"], row["generation_id"], row["id"]}
		}
	}
}

// drop counts objects that nobody needs, or deletes them, once they are old enough. One of a person
// whom the key store never knew is another installation's; where the main database alone does not
// know the person, not even as erased, it is of another time.
func (c *comparison) drop(ctx context.Context, orphans []objects.Info) error {
	orphans = slices.DeleteFunc(orphans, func(o objects.Info) bool { return o.Modified.After(c.old) })
	if len(orphans) == 0 {
		return nil
	}
	var people []any
	for _, o := range orphans {
		if owner := any(strings.Split(o.Key, "/")[1]); !slices.Contains(people, owner) {
			people = append(people, owner)
		}
	}
	var ours, known []string
	if err := c.s.Keys.Select(ctx, &ours, `SELECT subject FROM keysets WHERE subject IN (`+db.Marks(len(people))+`)`, people...); err != nil {
		return err
	}
	if err := c.s.DB.Select(ctx, &known, `SELECT id FROM subjects WHERE id IN (`+db.Marks(len(people))+`)`, people...); err != nil {
		return err
	}
	var keys []string
	for _, o := range orphans {
		switch owner := strings.Split(o.Key, "/")[1]; {
		case !slices.Contains(ours, owner):
			c.Unknown++
		case !slices.Contains(known, owner):
			c.Refused++
		default:
			keys = append(keys, o.Key)
		}
	}
	if c.most == 0 {
		c.Orphans += len(keys)
		return nil
	}
	if c.Orphans+len(keys) > c.most { // the database has changed since they were counted
		c.Refused += len(keys)
		return nil
	}
	if len(keys) == 0 {
		return nil
	}
	if err := c.s.Objects.Delete(ctx, keys...); err != nil {
		return err
	}
	c.Orphans += len(keys)
	c.s.Metrics.orphans.Add(float64(len(keys)))
	return nil
}

// archives finds exports that are ready and not there.
func (c *comparison) archives(ctx context.Context) error {
	for after := ""; ; {
		var page []exportRow
		err := c.s.DB.Select(ctx, &page, selectExport+`WHERE e.id > ? AND e.status = ? AND e.removed_at = 0 AND e.expires_at > ? AND e.ended_at < ? ORDER BY e.id LIMIT ?`,
			after, ExportReady, c.s.Clock.Millis(), c.old.UnixMilli(), comparePage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, r := range page {
			after = r.ID
			key := exportKey(r.Owner, r.ID, r.Attempts)
			found, err := c.s.Objects.List(ctx, key, "", 1)
			if err != nil {
				return err
			}
			if len(found) == 0 || found[0].Key != key || found[0].Hidden {
				c.Missing++
				c.s.Log.ErrorContext(ctx, "an object is missing", "export", r.ID)
			}
		}
	}
}
