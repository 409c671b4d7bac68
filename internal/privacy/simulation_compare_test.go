//go:build !race

package privacy_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"zimage/internal/generate"
	"zimage/internal/privacy"
)

// ends looks at what ended in the last two hours, through the room: its owner cannot read
// it, swept or not. What ends in the next two can be read, unless it was deleted.
func (w *world) ends() {
	now := w.clock.Now()
	for _, s := range w.people {
		for _, p := range s.works {
			forgotten := !p.gone.IsZero() && !p.gone.Add(tombstone).After(now)
			if !s.living() || forgotten || p.ends.Sub(now).Abs() > 2*time.Hour {
				continue
			}
			want, image := 0, p.images[0]
			if p.gone.IsZero() && p.ends.After(now) {
				i := slices.IndexFunc(p.images, func(i *shot) bool { return i.gone.IsZero() })
				if i < 0 {
					continue
				}
				want, image = 5, p.images[i]
			}
			if ways := w.readable(s.person, image.id, p.id); len(ways) != want {
				w.t.Errorf("%v from its end %s can be read by %v", now.Sub(p.ends), p.id, ways)
			}
		}
	}
	for _, e := range w.exports {
		if e.ends.IsZero() || !e.owner.living() || e.ends.Sub(now).Abs() > 2*time.Hour {
			continue
		}
		_, err := w.privacy.Export(w.t.Context(), e.owner.id, e.id)
		if there := err == nil; there != e.ends.After(now) {
			w.t.Errorf("%v from its end the export %s is there: %v (%v)", now.Sub(e.ends), e.id, there, err)
		}
	}
	for _, h := range w.shares {
		if h.ends.Sub(now).Abs() <= 2*time.Hour {
			w.shown(h)
		}
	}
	var want []string
	for _, k := range w.holds {
		if !k.view.After(now) {
			want = append(want, k.id)
		}
	}
	due, err := w.privacy.Holds(w.t.Context(), privacy.HoldsDue, "", "", 1000)
	must(w.t, err)
	var got []string
	for _, k := range due {
		got = append(got, k.ID)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("%v are to be looked at again, want %v", got, want)
	}
}

const tombstone = 30 * day

var usageWindow = privacy.Months(12)

// compare holds the stores against what must be there.
func (w *world) compare() {
	w.t.Helper()
	ctx, t, now := w.t.Context(), w.t, w.clock.Now()

	// Erasures that ended, whole and in time.
	var complete []string
	must(t, w.db.Select(ctx, &complete, `SELECT subject FROM erasures WHERE completed_at > 0 ORDER BY id`))
	for _, s := range w.people {
		switch {
		case !s.closing:
		case slices.Contains(complete, s.id):
			s.closing, s.erased = false, true
			w.gone(s)
			if r := w.receipt(s.erasure, s.secret); r.State != "complete" || r.CompletedAt.After(s.closedAt.Add(30*day)) {
				t.Errorf("the receipt of %s is %s at %v", s.id, r.State, r.CompletedAt)
			}
		case now.After(s.closedAt.Add(30 * day)):
			t.Errorf("%s closed at %v and is not erased", s.id, s.closedAt)
		case s.id != w.refusing.of && now.After(s.closedAt.Add(day+2*time.Hour)):
			t.Errorf("nothing keeps the erasure of %s, and it is not complete", s.id)
		}
	}

	// Accounts, as long as they live.
	var accounts []string
	must(t, w.db.Select(ctx, &accounts, `SELECT id FROM users`))
	w.same("accounts", accounts, func(s *soul) []string { return []string{s.id} })

	w.compareContent(now)
	w.compareObjects()
	w.compareRecords()

	w.compareRequests()
	w.compareTold()
	w.comparePassing()
}

// measure has the service say by itself whether it keeps its promises.
func (w *world) measure() {
	w.t.Helper()
	t := w.t
	w.rotate()
	st, err := w.privacy.Measure(t.Context())
	must(t, err)
	for _, b := range st.Broken {
		t.Errorf("the status says that %s is broken", b.Code)
	}
	for _, r := range st.Retention {
		if r.Broken {
			t.Errorf("%s %v is kept longer than %s", r.Table, r.Columns, r.Kept)
		}
	}
}

// same compares names in a store with those of all living people; what is of somebody
// whose erasure is on its way may be there or not.
func (w *world) same(what string, found []string, of func(*soul) []string) {
	w.t.Helper()
	left := map[string]bool{}
	for _, name := range found {
		left[name] = true
	}
	for _, s := range w.people {
		for _, name := range of(s) {
			if !left[name] && s.living() {
				w.t.Errorf("%s: %s is missing", what, name)
			}
			if s.living() || s.closing {
				delete(left, name)
			}
		}
	}
	for name := range left {
		if !slices.ContainsFunc(w.people, func(s *soul) bool { return s.closing && strings.Contains(name, s.id) }) {
			w.t.Errorf("%s: %s is left", what, name)
		}
	}
}

// content is a row of generations or images.
type content struct {
	ID        string `db:"id"`
	Owner     string `db:"owner"`
	RemovedAt int64  `db:"removed_at"`
	Empty     int    `db:"empty"`
}

func (w *world) compareContent(now time.Time) {
	w.t.Helper()
	ctx, t := w.t.Context(), w.t
	read := func(table, column string) map[string]content {
		var all []content
		must(t, w.db.Select(ctx, &all, "SELECT id, owner, removed_at, CASE WHEN "+column+" IS NULL THEN 1 ELSE 0 END AS empty FROM "+table))
		rows := map[string]content{}
		for _, c := range all {
			rows[c.ID] = c
		}
		return rows
	}
	// row compares one, and returns when its content went.
	row := func(rows map[string]content, what string, s *soul, id string, gone, ends time.Time, kept, keptRow bool) time.Time {
		c, there := rows[id]
		delete(rows, id)
		removed := time.UnixMilli(c.RemovedAt)
		// What ended since the last sweep may be gone by one that a release began.
		switch over := !kept && !ends.After(now) && (!ends.After(w.sweptAt) || c.RemovedAt > 0); {
		case s.closing:
		case s.erased: // by its hold alone
			if there && !keptRow || gone.IsZero() && keptRow && (!there || c.Empty > 0 || c.RemovedAt > 0) {
				t.Errorf("%s %s of an erased person: there %v, held %v", what, id, there, keptRow)
			}
		case gone.IsZero() && !over:
			if !there || c.RemovedAt > 0 || c.Empty > 0 {
				t.Errorf("%s %s ends at %v and is gone: %+v", what, id, ends, c)
			}
		case gone.IsZero():
			if !there || c.RemovedAt == 0 || c.Empty == 0 || removed.Before(ends) || removed.After(now) {
				t.Errorf("%s %s ended at %v and is %+v", what, id, ends, c)
				return gone
			}
			return removed
		case there && (c.RemovedAt == 0 || c.Empty == 0):
			t.Errorf("%s %s is gone since %v and is %+v", what, id, gone, c)
		case there && !keptRow && !gone.Add(tombstone).After(w.sweptAt):
			t.Errorf("the row of the %s %s is left, whose content went at %v", what, id, gone)
		case !there && gone.Add(tombstone).After(now):
			t.Errorf("the row of the %s %s went with its content", what, id)
		}
		return gone
	}
	generations, images := read("generations", "request"), read("images", "sha256")
	for _, s := range w.people {
		for _, p := range s.works {
			p.gone = row(generations, "generation", s, p.id, p.gone, p.ends, p.kept(), p.holds > 0)
			for _, i := range p.images {
				i.gone = row(images, "image", s, i.id, i.gone, p.ends, i.kept() && p.gone.IsZero(), i.kept())
			}
		}
	}
	for id := range generations {
		t.Errorf("nobody made %s", id)
	}
	for id := range images {
		t.Errorf("nobody made %s", id)
	}
	var unswept []string
	must(t, w.db.Select(ctx, &unswept, `SELECT id FROM generations WHERE unswept = 1`))
	if len(unswept) > 0 {
		t.Errorf("objects of %v are to be deleted still", unswept)
	}
	// What somebody sees in their list.
	for range 2 {
		s := one(w, w.people, func(s *soul) bool { return s.living() && len(s.works) > 0 })
		if s == nil {
			return
		}
		var want, got []string
		for _, p := range s.works {
			if p.gone.IsZero() && p.ends.After(now) {
				want = append(want, p.id)
			}
		}
		list, _, err := w.generate.List(ctx, s.id, generate.Page{Limit: 100})
		must(t, err)
		for _, g := range list {
			got = append(got, g.ID)
		}
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(want, got) {
			t.Errorf("%s sees %v, want %v", s.id, got, want)
		}
	}
}

// compareObjects holds every object against what is there.
func (w *world) compareObjects() {
	w.t.Helper()
	pictures := func(prefix string, p *piece, i *shot) []string {
		key := fmt.Sprintf("%s%s/1/%d", prefix, p.id, i.n)
		return []string{key + ".img", key + ".thumb"}
	}
	// Held ones of erased people lie under exceptions, whose ids only the database knows.
	erasedHeld := map[string]int{}
	var found []string
	oldest := "journal/" + w.sweptAt.Add(-59*day).Format(time.DateOnly)
	for _, key := range w.objects("") {
		switch part := strings.Split(key, "/"); {
		case part[0] == "journal":
			if key < oldest {
				w.t.Errorf("%s has had its time", key)
			}
		case part[0] == "held" && strings.HasPrefix(part[2], "exc_"):
			erasedHeld[part[1]]++
		default:
			found = append(found, key)
		}
	}
	w.same("objects", found, func(s *soul) (keys []string) {
		if s.erased {
			return nil
		}
		for _, p := range s.works {
			for _, i := range p.images {
				if i.gone.IsZero() {
					keys = append(keys, pictures("images/"+s.id+"/", p, i)...)
				}
			}
		}
		for _, k := range w.holds {
			for _, i := range k.piece.images {
				if k.piece.owner == s && i.gone.IsZero() && (k.shot == nil || k.shot == i) {
					keys = append(keys, pictures("held/"+s.id+"/"+k.id+"/", k.piece, i)...)
				}
			}
		}
		for _, e := range w.exports {
			if e.owner == s && (e.ends.IsZero() || e.ends.After(w.sweptAt)) {
				keys = append(keys, fmt.Sprintf("exports/%s/%s/1.zip", s.id, e.id))
			}
		}
		for _, l := range w.letters {
			if l.owner == s && l.ends.After(w.sweptAt) {
				keys = append(keys, l.key())
			}
		}
		return keys
	})
	for _, s := range w.people {
		if s.closing {
			delete(erasedHeld, s.id)
		}
		if !s.erased {
			continue
		}
		for _, p := range s.works {
			for _, i := range p.images {
				if i.gone.IsZero() && i.kept() {
					erasedHeld[s.id] -= 2
				}
			}
		}
		if erasedHeld[s.id] != 0 {
			w.t.Errorf("of the erased %s %d objects too many are held", s.id, erasedHeld[s.id])
		}
		delete(erasedHeld, s.id)
	}
	for id := range erasedHeld {
		w.t.Errorf("%s lives, and an exception keeps objects", id)
	}
}

// compareRecords looks at exports, letters and what people used.
func (w *world) compareRecords() {
	w.t.Helper()
	ctx, t := w.t.Context(), w.t
	for _, e := range w.exports {
		if e.ends.IsZero() && e.owner.living() {
			now, err := w.privacy.Export(ctx, e.owner.id, e.id)
			must(t, err)
			if now.Status != privacy.ExportReady {
				t.Errorf("the export %s is %s (%s)", e.id, now.Status, now.Code)
			}
			e.ends = now.ExpiresAt
		}
	}
	var rows []string
	must(t, w.db.Select(ctx, &rows, `SELECT owner || ' ' || id FROM exports`))
	w.same("exports", rows, func(s *soul) (ids []string) {
		for _, e := range w.exports {
			if e.owner == s && e.ends.After(w.sweptAt) {
				ids = append(ids, s.id+" "+e.id)
			}
		}
		return ids
	})
	rows = nil
	must(t, w.db.Select(ctx, &rows, `SELECT owner || ' ' || n FROM letters`))
	w.same("letters", rows, func(s *soul) (ids []string) {
		for _, l := range w.letters {
			if l.owner == s && l.ends.After(w.sweptAt) {
				ids = append(ids, fmt.Sprint(s.id, " ", l.n))
			}
		}
		return ids
	})
	var used []struct {
		Subject string `db:"subject"`
		Count   int    `db:"n"`
		First   int64  `db:"first"`
	}
	must(t, w.db.Select(ctx, &used, `SELECT subject, count(*) AS n, min(at) AS first FROM usage_events GROUP BY subject`))
	rows = nil
	for _, u := range used {
		rows = append(rows, fmt.Sprint(u.Subject, " ", u.Count, " since ", u.First))
	}
	w.same("usage", rows, func(s *soul) []string {
		s.uses = slices.DeleteFunc(s.uses, func(at time.Time) bool { return !usageWindow.After(at).After(w.sweptAt) })
		if len(s.uses) == 0 {
			return nil
		}
		return []string{fmt.Sprint(s.id, " ", len(s.uses), " since ", s.uses[0].UnixMilli())}
	})
}

// compareRequests looks at what was asked for, by whom it was and what it said.
func (w *world) compareRequests() {
	w.t.Helper()
	ctx, t, now := w.t.Context(), w.t, w.clock.Now()
	var rows []struct {
		ID       string `db:"id"`
		Subject  string `db:"subject"`
		State    string `db:"state"`
		ClosedAt int64  `db:"closed_at"`
		Said     int    `db:"said"`
	}
	must(t, w.db.Select(ctx, &rows, `SELECT id, subject, state, closed_at, CASE WHEN address IS NULL AND address_lookup IS NULL AND note IS NULL THEN 0 ELSE 1 END AS said FROM requests`))
	people := map[string]*soul{}
	for _, s := range w.people {
		people[s.id] = s
	}
	asks := map[string]*asking{}
	for _, a := range w.asks {
		asks[a.id] = a
	}
	for _, r := range rows {
		closed, s, a := time.UnixMilli(r.ClosedAt), people[r.Subject], asks[r.ID]
		delete(asks, r.ID)
		if a != nil && a.closed.IsZero() && !a.expires.IsZero() && !a.expires.After(w.sweptAt) {
			if r.State != "closed" || closed.Before(a.expires) || closed.After(now) {
				t.Errorf("nobody has confirmed the request %s until %v, and it is %s since %v", r.ID, a.expires, r.State, closed)
			}
			a.closed = closed
		}
		switch {
		case s != nil && s.erased && r.Said == 1:
			t.Errorf("the request %s says something of an erased person", r.ID)
		case s != nil && !s.living():
		case r.State == "closed" && r.Said == 1 && !closed.Add(30*day).After(w.sweptAt):
			t.Errorf("what the request %s said is kept, %v behind its end", r.ID, now.Sub(closed))
		case a == nil && r.State != "closed" && (s == nil || s.leaves.IsZero()):
			t.Errorf("the request %s is open", r.ID)
		case a != nil && (a.closed.IsZero() != (r.State != "closed") || r.Said == 0 && (a.closed.IsZero() || a.closed.Add(30*day).After(now))):
			t.Errorf("the request %s is %s and says something: %d, want %+v", r.ID, r.State, r.Said, a)
		}
	}
	for id := range asks {
		t.Errorf("the request %s is missing", id)
	}
	// The key of who has no account goes with what they said.
	var keys, want []string
	must(t, w.keys.Select(ctx, &keys, `SELECT subject FROM keysets WHERE subject LIKE 'req_%' AND destroyed_at IS NULL ORDER BY subject`))
	for _, a := range w.asks {
		if a.owner == nil && (a.closed.IsZero() || a.closed.Add(30*day).After(w.sweptAt)) {
			want = append(want, a.id)
		}
	}
	slices.Sort(want)
	if !slices.Equal(keys, want) {
		t.Errorf("the keys of %v are there, want %v", keys, want)
	}
}

// life is how long the map keeps a row of a table.
func (w *world) life(table string) time.Duration { return w.privacy.EndOf(table, start).Sub(start) }

// comparePassing looks at rows that the service writes by itself: each is there until its
// time is over, by what it said when it was last seen, and not after.
func (w *world) comparePassing() {
	w.t.Helper()
	people := map[string]*soul{}
	for _, s := range w.people {
		people[s.id] = s
	}
	for table, rule := range map[string]struct {
		query string
		life  time.Duration // 0: as long as the account
	}{
		"mails":          {`SELECT id, subject AS owner, coalesce(accepted_at, 0) AS since FROM mails`, 30 * day},
		"sessions":       {`SELECT id, owner, last_used_at AS since FROM sessions`, 90 * day},
		"ledger_details": {`SELECT entry_id AS id, subject AS owner, 0 AS since FROM ledger_details`, 0},

		"webhook_once":       {`SELECT id, owner, created_at AS since FROM webhook_once`, w.life("webhook_once")},
		"webhook_events":     {`SELECT id, owner, at AS since FROM webhook_events`, w.life("webhook_events")},
		"webhook_deliveries": {`SELECT id, owner, created_at AS since FROM webhook_deliveries`, w.life("webhook_deliveries")},
		"webhook_attempts":   {`SELECT a.delivery || ':' || a.n AS id, a.owner, d.created_at AS since FROM webhook_attempts a JOIN webhook_deliveries d ON d.id = a.delivery`, w.life("webhook_deliveries")}, // they go together
	} {
		var rows []struct {
			ID    string `db:"id"`
			Owner string `db:"owner"`
			Since int64  `db:"since"`
		}
		must(w.t, w.db.Select(w.t.Context(), &rows, rule.query))
		seen := w.passing[table]
		if seen == nil {
			seen = map[string]*passing{}
			w.passing[table] = seen
		}
		there := map[string]bool{}
		for _, r := range rows {
			p := &passing{owner: people[r.Owner]}
			if rule.life > 0 && r.Since > 0 {
				p.ends = time.UnixMilli(r.Since).Add(rule.life)
			}
			if !p.ends.IsZero() && !p.ends.After(w.sweptAt) {
				w.t.Errorf("%s: %s ended at %v and is there", table, r.ID, p.ends)
			}
			seen[r.ID], there[r.ID] = p, true
		}
		for id, p := range seen {
			switch {
			case there[id]:
			case p.owner == nil && table == "ledger_details": // a letter's, which became an account's or is wiped
			case (p.owner == nil || p.owner.living()) && (p.ends.IsZero() || p.ends.After(w.clock.Now())):
				w.t.Errorf("%s: %s is missing, which ends at %v", table, id, p.ends)
			}
			if !there[id] {
				delete(seen, id)
				w.did[table+" have ended"]++
			}
		}
	}
}
