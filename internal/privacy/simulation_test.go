//go:build !race

// With the race detector this takes ten times as long: `make test` runs it without.

package privacy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/webhook"
)

const (
	simulatedDays   = 800
	simulatedPeople = 220
	versionedDays   = 130 // of fewer people, for what a bucket that keeps versions has to do with
	simulationSeed  = 7
	actsEvery       = 5 // days
)

// Hundreds of people live through 800 days: they sign up, generate, with days of their
// own or without, delete, export, restrict, close, and some are held. What must be in the
// stores is kept in memory, by what the policy says alone, and compared with them.
//
// At 8:00 of every fifth day everybody acts, and workers do what follows of it at once. At
// 9:55 of every day all that is scheduled comes round once, so that whatever ended since
// 8:00 has less than two hours; then everything is compared. Where anything ends within an
// hour, by what is kept in memory, which is around 8:00 too, that happens at 6:55, 7:55 and
// 8:55 as well.
func TestPromise_R1_R3_R4_R5_R6_R8_EightHundredDays(t *testing.T) {
	on(t, every, func(t *testing.T, s privacy.Stack) {
		w := newWorld(t, s)
		days := simulatedDays
		if s.Versioned {
			days = versionedDays
		}
		for d := range days {
			if w.day(d); t.Failed() {
				t.Fatalf("on day %d, seed %d", d, simulationSeed)
			}
		}
		w.end()
	})
}

// world is what must be in a home.
type world struct {
	*home
	t         *testing.T
	chance    *rand.Rand
	scheduler *jobs.Scheduler // of all but the comparison
	compares  *jobs.Scheduler
	usage     *privacy.Usage
	picture   []byte
	refusing  *refusing
	people    []*soul
	exports   []*copied
	letters   []*letter
	asks      []*asking
	shares    []*showing
	told      []*told
	receiver  string
	heard     *heard
	passing   map[string]map[string]*passing // by table and id
	holds     []*keeping
	sweptAt   time.Time // what was over then is gone
	did       map[string]int
}

// soul is a person, and all that is theirs.
type soul struct {
	person
	n               int
	closing, erased bool
	restricted      bool
	leaves          time.Time // when it is closed for a letter; zero: it is not, or is
	closedAt        time.Time
	erasure, secret string
	works           []*piece
	uses            []time.Time
	revoked         int  // how often, their links
	once            bool // they gave an address with a generation
}

// piece is a generation.
type piece struct {
	owner  *soul
	id     string
	life   time.Duration
	ends   time.Time
	gone   time.Time // its content; zero: it is there
	holds  int
	images []*shot

	shortened bool
}

type shot struct {
	of    *piece
	id    string
	n     int
	gone  time.Time
	holds int
	told  bool // its end, to the webhooks of then
}

// keeping is a hold, on a generation or on an image of it.
type keeping struct {
	id    string
	until time.Time
	view  time.Time // when it is to be looked at again
	piece *piece
	shot  *shot // nil: the whole
}

type copied struct {
	owner *soul
	id    string
	ends  time.Time
}

type letter struct {
	owner *soul
	n     int
	ends  time.Time
}

// asking is a request that staff answer, or one from an address.
type asking struct {
	owner   *soul // nil: nobody's
	id      string
	expires time.Time // unless it is confirmed; zero: it is
	answer  time.Time // when the staff does
	closed  time.Time // zero: it is open
}

// passing is a row that was seen, whose end follows from what it said.
type passing struct {
	owner *soul     // nil: nobody's
	ends  time.Time // zero: it stays
}

// kept by a hold, whatever its end.
func (p *piece) kept() bool {
	return p.holds > 0 || slices.ContainsFunc(p.images, func(i *shot) bool { return i.holds > 0 })
}

func (i *shot) kept() bool { return i.of.holds > 0 || i.holds > 0 }

func (s *soul) living() bool { return !s.closing && !s.erased }

// refusing is an object store that deletes nothing of one person.
type refusing struct {
	objects.Store
	of string // empty: nobody
}

func (r *refusing) Delete(ctx context.Context, keys ...string) error {
	if r.of != "" && slices.ContainsFunc(keys, func(key string) bool { return strings.Contains(key, "/"+r.of+"/") }) {
		return &objects.Error{Op: "delete", Code: "AccessDenied"}
	}
	return r.Store.Delete(ctx, keys...)
}

func newWorld(t *testing.T, s privacy.Stack) *world {
	h := withLater(t, s)
	h.ledger = privacy.NewLedger(privacy.LedgerOptions{DB: h.db, Vault: h.vault, Clock: h.clock})
	schedules := slices.Concat(privacy.Schedules(), generate.Schedules(), webhook.Schedules())
	h.options.Recurring = schedules
	w := &world{home: h, t: t, chance: rand.New(rand.NewPCG(simulationSeed, 0)), picture: picture(), refusing: &refusing{Store: h.store}, did: map[string]int{}, heard: &heard{of: map[string]int{}}, passing: map[string]map[string]*passing{}} //nolint:gosec // it must be the same each time
	h.away.Store = w.refusing
	h.at.Redis = testenv.Redis(t)
	h.withFarewells()
	w.receivers()
	h.engine = func(context.Context, engine.Request) ([]byte, error) { return w.picture, nil }
	var hourly, daily []jobs.Schedule
	for _, one := range schedules {
		if one.Kind == privacy.KindCompare {
			daily = append(daily, one)
		} else {
			hourly = append(hourly, one)
		}
	}
	w.scheduler, w.compares = h.queue.NewScheduler(hourly...), h.queue.NewScheduler(daily...)
	w.usage = privacy.NewUsage(privacy.UsageOptions{DB: h.db, Vault: h.vault, Clock: h.clock, Window: h.options.Policy.Windows.Usage})
	h.work(jobs.Lane{Name: privacy.ExportLane, Slots: jobs.NewFixed(1)}, jobs.Lane{Name: webhook.Lane, Slots: jobs.NewFixed(2)})
	return w
}

// The days on which one person's objects cannot be deleted, from the closing to the
// last hours of the deadline.
const (
	refusedFrom = 300
	refusedTo   = refusedFrom + 30
)

func (w *world) day(d int) {
	w.log.Reset()
	midnight := start.Truncate(day).Add(time.Duration(d+1) * day)
	at := func(hour, minute int) {
		to := midnight.Add(time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute)
		if w.clock.Now().After(to) {
			w.t.Fatalf("it is %v already", w.clock.Now())
		}
		w.clock.Advance(to.Sub(w.clock.Now()))
	}
	ends := w.due(midnight, midnight.Add(day))
	var all []time.Time
	for what, times := range ends {
		w.did["hourly around "+what] += len(times)
		all = append(all, times...)
	}
	round := func(n int) {
		at(n, 55)
		w.ends()
		w.tick()
		w.compare()
	}
	hour := func(n int) {
		then := midnight.Add(time.Duration(n)*time.Hour + 55*time.Minute)
		if slices.ContainsFunc(all, func(end time.Time) bool { return end.Sub(then).Abs() <= time.Hour }) {
			round(n)
		}
	}
	hour(6)
	if d == refusedTo {
		w.refusing.of = ""
	}
	hour(7)
	at(8, 0)
	if d%actsEvery == 0 {
		w.act(d)
		w.settle()
	}
	if len(all) > 0 {
		w.ends()
	}
	hour(8)
	round(9)
	// The comparison by itself: it may not find what others should have deleted. What it did
	// is remembered for a day, so the status is asked behind it.
	must(w.t, w.compares.Tick(w.t.Context()))
	w.settle()
	w.measure()
	if n := w.figure("zimage_orphans_deleted_total"); n != 0 {
		w.t.Errorf("%v objects had lost their rows", n)
	}
}

// due are the ends between two times, by what it is that ends.
func (w *world) due(from, to time.Time) map[string][]time.Time {
	ends := map[string][]time.Time{}
	end := func(what string, at time.Time) {
		if !at.Before(from) && at.Before(to) {
			ends[what] = append(ends[what], at)
		}
	}
	for _, s := range w.people {
		for _, p := range s.works {
			switch {
			case !s.living():
			case !p.gone.IsZero():
				end("what is left of a generation", p.gone.Add(tombstone))
			case p.shortened:
				end("a shortened window", p.ends)
			default:
				end("a window", p.ends)
			}
		}
		for _, at := range s.uses {
			if s.living() {
				end("a use", usageWindow.After(at))
			}
		}
		if s.closing {
			end("an erasure's deadline", s.closedAt.Add(30*day))
		}
		end("an objection's time", s.leaves)
	}
	for _, e := range w.exports {
		if e.owner.living() {
			end("an export", e.ends)
		}
	}
	for _, l := range w.letters {
		if l.owner.living() {
			end("correspondence", l.ends)
		}
	}
	for _, k := range w.holds {
		end("a hold's review", k.view)
	}
	for _, h := range w.shares {
		if h.owner().living() {
			end("a share", h.ends)
		}
	}
	for _, h := range w.told {
		if h.owner.living() && !h.rotated.IsZero() {
			end("a replaced secret", h.rotated.Add(replacedSecret))
		}
	}
	for _, a := range w.asks {
		switch {
		case a.owner != nil && !a.owner.living():
		case !a.closed.IsZero():
			end("what a request said", a.closed.Add(30*day))
		case !a.expires.IsZero():
			end("a confirmation", a.expires)
		}
	}
	for table, rows := range w.passing {
		for _, p := range rows {
			if p.owner == nil || p.owner.living() {
				end(table, p.ends)
			}
		}
	}
	return ends
}

// tick has all come round that is scheduled, and everybody at work.
func (w *world) tick() {
	w.t.Helper()
	ctx := w.t.Context()
	w.sweptAt = w.clock.Now()
	must(w.t, w.scheduler.Reconcile(ctx))
	must(w.t, w.scheduler.Tick(ctx))
	must(w.t, w.privacy.Look(ctx, false))
	for _, s := range w.people {
		if !s.leaves.IsZero() && !s.leaves.After(w.sweptAt) {
			s.leaves = time.Time{}
			w.closed(s)
		}
	}
	w.settle()
	w.toldEnds()
	must(w.t, w.scheduler.Prune(ctx))
	must(w.t, w.accounts.Prune(ctx))
	_, err := w.folder.Sweep()
	must(w.t, err)
	_, err = w.ledger.Seal(ctx)
	must(w.t, err)
}

// settle waits until nothing is to be done within a minute and a half, and moves the
// clock so far.
func (w *world) settle() {
	w.t.Helper()
	for range 100 {
		late := time.Now().Add(time.Minute)
		for w.count(`SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')`) > 0 {
			if time.Now().After(late) {
				w.t.Fatal("the work has no end")
			}
			time.Sleep(time.Millisecond)
		}
		next := time.UnixMilli(int64(w.count(`SELECT coalesce(min(run_after), 0) FROM jobs WHERE state = 'waiting'`)))
		if next.UnixMilli() == 0 || next.After(w.clock.Now().Add(90*time.Second)) {
			return
		}
		w.clock.Advance(max(0, next.Sub(w.clock.Now())))
		must(w.t, w.scheduler.Reconcile(w.t.Context()))
	}
	w.t.Fatal("the work has no end")
}

// one of those for which ok holds, by chance; the zero value: there is none.
func one[T any](w *world, all []T, ok func(T) bool) (chosen T) {
	some := slices.DeleteFunc(slices.Clone(all), func(v T) bool { return !ok(v) })
	if len(some) > 0 {
		chosen = some[w.chance.IntN(len(some))]
	}
	return chosen
}

// often has something done on one of so many days.
func (w *world) often(what string, of float64, do func() bool) {
	if w.chance.Float64() < of && do() {
		w.clock.Advance(time.Second)
		w.did[what]++
	}
}

// pieces that are there, of people who are, and in their time.
func (w *world) pieces() (all []*piece) {
	for _, s := range w.people {
		if s.living() {
			for _, p := range s.works {
				if p.gone.IsZero() && p.ends.After(w.clock.Now()) {
					all = append(all, p)
				}
			}
		}
	}
	return all
}

// act has people do what they do in some days.
func (w *world) act(d int) {
	for range actsEvery {
		w.acts(d)
	}
	if d == refusedFrom {
		s := one(w, w.people, func(s *soul) bool { return s.living() && len(w.objects("images/"+s.id+"/")) > 0 })
		w.refusing.of = s.id
		w.often("closed, and not deleted for 30 days", 1, func() bool { return w.closes(s) })
	}
}

func (w *world) acts(d int) {
	ctx, t := w.t.Context(), w.t
	free := func(s *soul) bool { return s.living() && !s.restricted && s.leaves.IsZero() }
	living := func(s *soul) bool { return s.living() && s.leaves.IsZero() }
	signUp := func() bool {
		if len(w.people) >= simulatedPeople {
			return false
		}
		s := &soul{n: len(w.people)}
		s.person = w.newcomer(fmt.Sprint("p", s.n))
		w.people = append(w.people, s)
		return true
	}
	w.often("signs up", map[bool]float64{true: 1, false: 0.35}[d < 60], signUp)

	days := func() int {
		if w.chance.IntN(4) == 0 {
			return actsEvery * (1 + w.chance.IntN(17)) // so that much ends on the same days
		}
		return 90
	}
	for range 1 + w.chance.IntN(2) {
		w.often("made", 0.6, func() bool { return w.paints(one(w, w.people, free), days()) })
	}
	w.often("generated", 0.13, func() bool { return w.generates(one(w, w.people, living), days()) })
	w.often("deleted a generation", 0.12, func() bool {
		p := one(w, w.pieces(), func(*piece) bool { return true })
		if p == nil {
			return false
		}
		err := w.generate.Delete(ctx, p.owner.id, p.id)
		if p.kept() {
			if !errors.Is(err, subject.ErrHeld) {
				t.Errorf("%s is held, and deleting it: %v", p.id, err)
			}
			return false
		}
		must(t, err)
		w.remove(p, w.clock.Now())
		return true
	})
	w.often("deleted an image", 0.2, func() bool {
		p := one(w, w.pieces(), func(p *piece) bool { return len(p.images) > 1 })
		if p == nil {
			return false
		}
		i := p.images[w.chance.IntN(len(p.images))]
		err := w.generate.DeleteImage(ctx, p.owner.id, i.id)
		switch {
		case !i.gone.IsZero():
			return false
		case i.kept():
			if !errors.Is(err, subject.ErrHeld) {
				t.Errorf("%s is held, and deleting it: %v", i.id, err)
			}
			return false
		}
		must(t, err)
		i.gone = w.clock.Now()
		return true
	})
	w.often("exported", 0.06, func() bool {
		s := one(w, w.people, func(s *soul) bool {
			return living(s) && !slices.ContainsFunc(w.exports, func(e *copied) bool { return e.owner == s && e.ends.IsZero() })
		})
		if s == nil {
			return false
		}
		e, err := w.privacy.AskExport(ctx, s.id)
		must(t, err)
		w.exports = append(w.exports, &copied{owner: s, id: e.ID})
		return true
	})
	w.often("restricted", 0.05, func() bool {
		s := one(w, w.people, free)
		must(t, w.accounts.Restrict(ctx, w.session(s)))
		s.restricted = true
		return true
	})
	w.often("lifted a restriction", 0.04, func() bool {
		s := one(w, w.people, func(s *soul) bool { return living(s) && s.restricted })
		if s == nil {
			return false
		}
		must(t, w.accounts.Unrestrict(ctx, w.session(s)))
		s.restricted = false
		return true
	})
	w.often("held", 0.09, func() bool {
		p := one(w, w.pieces(), func(p *piece) bool { return p.holds == 0 })
		if p == nil {
			return false
		}
		k := &keeping{piece: p, until: w.clock.Now().Add(time.Duration(5+w.chance.IntN(150)) * day)}
		table, record := "generations", p.id
		if there := one(w, p.images, func(i *shot) bool { return i.gone.IsZero() }); there != nil && w.chance.IntN(2) == 0 {
			k.shot, table, record = there, "images", there.id
			there.holds++
		} else {
			p.holds++
		}
		hold, err := w.place(p.owner.id, table, record)
		must(t, err)
		k.id, k.view = hold.ID, hold.ReviewAt
		w.holds = append(w.holds, k)
		return true
	})
	for _, k := range slices.Clone(w.holds) {
		if k.until.Before(w.clock.Now()) {
			w.often("released", 1, func() bool { return w.release(k) })
		}
	}
	writes := 0.03
	if d < 70 { // these end before the end
		writes = 0.3
	}
	w.often("wrote", writes, func() bool {
		s := one(w, w.people, living)
		l := &letter{owner: s, n: len(w.letters), ends: privacy.Months(24).After(w.clock.Now())}
		w.letters = append(w.letters, l)
		_, err := w.db.Exec(ctx, `INSERT INTO letters (owner, n, at, read_at, words, title) VALUES (?, ?, ?, NULL, ?, 'a')`, s.id, l.n, w.clock.Millis(), []byte(mark))
		must(t, err)
		must(t, w.store.Put(ctx, l.key(), bytes.NewReader([]byte("attached")), 8))
		return true
	})
	for range 4 {
		s := one(w, w.people, living)
		w.clock.Advance(time.Second)
		w.usage.Note(privacy.Use{Subject: s.id, Feature: "list-generations", Addr: usageAddr, Agent: usageAgent})
		if !s.restricted {
			s.uses = append(s.uses, w.clock.Now().Truncate(time.Millisecond))
		}
	}
	must(t, w.usage.Flush(ctx))
	often := 0.0
	if d > 30 {
		often = 0.09
	}
	w.often("closed", often, func() bool { return w.closes(one(w, w.people, living)) })
	w.often("closed, and held", often/4, func() bool {
		k := one(w, w.holds, func(k *keeping) bool { return living(k.piece.owner) })
		return k != nil && w.closes(k.piece.owner)
	})
	w.writes(often, living)
	w.shows(free, living)
}

func (w *world) closes(s *soul) bool {
	if s != nil {
		must(w.t, w.accounts.CloseFor(w.t.Context(), account.AtTheMachine(), s.id, "a letter that asks for it, "+mark))
		w.closed(s)
	}
	return s != nil
}

// closed is what follows of a closing.
func (w *world) closed(s *soul) {
	var err error
	s.closing, s.closedAt = true, w.clock.Now()
	s.erasure, s.secret, err = w.claim(s.person)
	must(w.t, err)
}

// writes is what people ask for by the staff, and by letters: who has an account, and who
// has none.
func (w *world) writes(often float64, living func(*soul) bool) {
	ctx, t := w.t.Context(), w.t
	w.often("asked the staff", 0.04, func() bool {
		s := one(w, w.people, living)
		r, err := w.privacy.Ask(ctx, s.id, privacy.RequestRectification, "my name, "+mark)
		must(t, err)
		w.asks = append(w.asks, &asking{owner: s, id: r.ID, answer: w.clock.Now().Add(time.Duration(actsEvery*(1+w.chance.IntN(5))) * day)})
		return true
	})
	for _, a := range w.asks {
		if !a.answer.IsZero() && a.closed.IsZero() && a.answer.Before(w.clock.Now()) && a.owner.living() {
			w.often("was answered", 1, func() bool {
				_, err := w.privacy.CloseRequest(ctx, w.machine(), a.id, []privacy.RequestOutcome{privacy.OutcomeDone, privacy.OutcomeRefused}[w.chance.IntN(2)], because)
				must(t, err)
				a.closed = w.clock.Now()
				return true
			})
		}
	}
	w.often("wrote without an account", 0.1, func() bool {
		kinds, opened := privacy.RequestKinds(), w.clock.Now().Truncate(time.Millisecond)
		a, code := w.opens(fmt.Sprintf("nobody%d-%s@example.org", len(w.asks), strings.ToLower(mark)), kinds[w.chance.IntN(len(kinds))])
		if w.chance.IntN(2) == 0 {
			a.expires = opened.Add(7 * day)
			return true
		}
		r, err := w.privacy.ConfirmRequest(ctx, code)
		if err != nil || r.Outcome != privacy.OutcomeNothingHeld {
			t.Errorf("somebody without an account is told %+v, %v", r, err)
		}
		a.closed = w.clock.Now()
		return true
	})
	w.often("restricted by a letter", 0.02, func() bool {
		s := one(w, w.people, func(s *soul) bool { return living(s) && !s.restricted })
		a, code := w.opens(s.email, privacy.RequestRestriction)
		_, err := w.privacy.ConfirmRequest(ctx, code)
		must(t, err)
		a.owner, a.closed, s.restricted = s, w.clock.Now(), true
		return true
	})
	w.often("closed by a letter", often/4, func() bool {
		s := one(w, w.people, living)
		guarded := w.chance.IntN(2) == 0
		if guarded {
			w.exec(`UPDATE users SET totp_confirmed_at = 1 WHERE id = ?`, s.id)
		}
		a, code := w.opens(s.email, privacy.RequestErasure)
		w.asks = slices.DeleteFunc(w.asks, func(other *asking) bool { return other == a }) // the erasure closes it
		r, err := w.privacy.ConfirmRequest(ctx, code)
		must(t, err)
		if guarded {
			s.leaves = r.ActsAt
		} else {
			w.closed(s)
		}
		return true
	})
}

// opens opens a request for an address, and reads its mail.
func (w *world) opens(email string, kind privacy.RequestKind) (a *asking, code string) {
	r, err := w.privacy.OpenRequest(w.t.Context(), w.machine(), email, kind, "please, "+mark, time.Time{})
	must(w.t, err)
	w.settle()
	var id string
	must(w.t, w.db.Get(w.t.Context(), &id, `SELECT id FROM mails WHERE subject = ?`, r.ID))
	text, err := os.ReadFile(filepath.Join(w.dir, "mail", id+".eml"))
	must(w.t, err)
	code = regexp.MustCompile(`zq_[\w-]+`).FindString(strings.NewReplacer("=\r\n", "", "=\n", "").Replace(string(text)))
	a = &asking{id: r.ID}
	w.asks = append(w.asks, a)
	return a, code
}

func (l *letter) key() string { return fmt.Sprintf("letters/%s/%d.txt", l.owner.id, l.n) }

// session is a new one of a person's.
func (w *world) session(s *soul) account.Principal {
	w.t.Helper()
	in, err := w.accounts.SignIn(w.t.Context(), client, account.Credentials{Email: s.email, Password: password})
	must(w.t, err)
	p, err := w.accounts.AuthenticateSession(w.t.Context(), in.Token)
	must(w.t, err)
	return p
}

// paints adds a generation as the room does, without an engine.
func (w *world) paints(s *soul, days int) bool {
	if s == nil {
		return false
	}
	image := w.paint(s.person, 1)[0]
	p := &piece{owner: s, life: time.Duration(days) * day, ends: w.clock.Now().Truncate(time.Millisecond).Add(time.Duration(days) * day)}
	must(w.t, w.db.Get(w.t.Context(), &p.id, `SELECT generation_id FROM images WHERE id = ?`, image))
	p.images = []*shot{{of: p, id: image}}
	if p.shortened = days != 90; p.shortened {
		for _, table := range []string{"generations WHERE id", "images WHERE generation_id"} {
			name, where, _ := strings.Cut(table, " ")
			_, err := w.db.Exec(w.t.Context(), "UPDATE "+name+" SET expires_at = ? "+where+" = ?", p.ends.UnixMilli(), p.id)
			must(w.t, err)
		}
	}
	s.works = append(s.works, p)
	return true
}

// generates has an engine make two images.
func (w *world) generates(s *soul, days int) bool {
	ctx := w.t.Context()
	if s == nil {
		return false
	}
	request := generate.Request{Prompt: mark, Width: 256, Height: 256, N: 2, RetentionDays: days}
	if w.chance.IntN(3) == 0 {
		request.Webhook.URL = w.receiver + "/once"
	}
	g, _, err := w.generate.Submit(ctx, s.id, request, nil)
	if s.restricted {
		if err == nil {
			w.t.Errorf("%s has restricted the processing, and generates", s.id)
		}
		return false
	}
	must(w.t, err)
	s.once = s.once || request.Webhook.URL != ""
	p := &piece{owner: s, id: g.ID, life: time.Duration(days) * day, ends: w.clock.Now().Truncate(time.Millisecond).AddDate(0, 0, days), shortened: days != 90}
	w.settle()
	var images []struct {
		ID string `db:"id"`
		N  int    `db:"n"`
	}
	must(w.t, w.db.Select(ctx, &images, `SELECT id, n FROM images WHERE generation_id = ? ORDER BY n`, p.id))
	if len(images) != 2 {
		w.t.Fatalf("%d images were made", len(images))
	}
	for _, i := range images {
		p.images = append(p.images, &shot{of: p, id: i.ID, n: i.N})
	}
	s.works = append(s.works, p)
	return true
}

func (w *world) release(k *keeping) bool {
	must(w.t, w.privacy.ReleaseHold(w.t.Context(), w.machine(), k.id))
	if k.shot != nil {
		k.shot.holds--
	} else {
		k.piece.holds--
	}
	w.holds = slices.DeleteFunc(w.holds, func(one *keeping) bool { return one == k })
	if s := k.piece.owner; s.erased {
		must(w.t, w.privacy.Look(w.t.Context(), false))
		w.settle()
		w.gone(s)
	}
	return true
}

// remove takes a generation's content and that of its images.
func (w *world) remove(p *piece, at time.Time) {
	p.gone = at
	for _, i := range p.images {
		if i.gone.IsZero() {
			i.gone = at
		}
	}
}

// gone checks that nothing of an erased person is left but what holds keep.
func (w *world) gone(s *soul) {
	w.t.Helper()
	keeps := []string{"main/erasure_exceptions"}
	for _, k := range w.holds {
		if k.piece.owner == s {
			keeps = append(keeps, "main/holds", "main/images", "objects/held/")
			if k.shot == nil {
				keeps = append(keeps, "main/generations")
			}
		}
	}
	w.erased(s.person, keeps...)
	for _, h := range w.told {
		if h.owner == s && w.count(`SELECT count(*) FROM jobs WHERE party = ? AND state IN ('queued', 'waiting', 'running')`, h.id) > 0 {
			w.t.Errorf("the webhook %s of somebody who is erased is to be told something", h.id)
		}
	}
}

// end looks once more at everybody, living or erased, and whether there was enough to
// see.
func (w *world) end() {
	ctx, t := w.t.Context(), w.t
	living, erased := 0, 0
	for _, s := range w.people {
		if s.living() {
			living++
			if u, err := w.accounts.User(ctx, s.id); err != nil || u.Email != s.email {
				t.Errorf("the account of %s: %v", s.id, err)
			}
			continue
		}
		erased++
		w.gone(s)
	}
	enough := map[string]int{"signs up": simulatedPeople, "made": 500, "generated": 60, "deleted a generation": 50, "deleted an image": 50, "exported": 25,
		"restricted": 20, "lifted a restriction": 15, "held": 40, "released": 40, "wrote": 25, "closed": 40, "closed, and held": 5, "closed, and not deleted for 30 days": 1,
		"closed by a letter": 5, "restricted by a letter": 5, "wrote without an account": 30, "asked the staff": 15, "was answered": 10, "mails have ended": 200, "sessions have ended": 100,
		"hourly around a window": 200, "hourly around a shortened window": 80, "hourly around what is left of a generation": 200, "hourly around a use": 500, "hourly around an export": 15,
		"hourly around correspondence": 5, "hourly around an erasure's deadline": 1, "hourly around an objection's time": 2, "hourly around a hold's review": 10,
		"shared": 60, "ended a share": 10, "revoked links": 15, "made a webhook": 30, "was told": 25, "replaced a secret": 4, "deleted a webhook": 3, "was told of a picture's end": 50, "webhook_once have ended": 10,
		"webhook_events have ended": 100, "webhook_deliveries have ended": 100, "webhook_attempts have ended": 100, "hourly around a share": 30, "hourly around a replaced secret": 4,
		"hourly around webhook_once": 10, "hourly around webhook_events": 100, "hourly around webhook_deliveries": 100, "hourly around webhook_attempts": 100,
		"hourly around a confirmation": 8, "hourly around what a request said": 20, "hourly around mails": 200, "hourly around sessions": 100}
	if w.at.Versioned {
		enough = map[string]int{"made": 80, "generated": 8, "exported": 2, "held": 4, "closed": 3, "shared": 10, "made a webhook": 3, "webhook_deliveries have ended": 5, "hourly around a window": 10, "hourly around what is left of a generation": 10}
	}
	for what, least := range enough {
		if w.did[what] < least {
			t.Errorf("%s: only %d", what, w.did[what])
		}
	}
	if r, err := w.ledger.Verify(ctx, nil, nil); err != nil || r.Entries < 100 {
		t.Errorf("the ledger: %+v, %v", r, err)
	}
	t.Logf("seed %d: %d live, %d are erased; %v", simulationSeed, living, erased, w.did)
}
