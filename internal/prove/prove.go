// Package prove shows on a running installation that it keeps what it promises: a
// new person gives it a word that nobody else has through every input, uses
// everything, and closes the account; and wherever a word could be left, all is
// looked through, while the account lives and after its erasure. That the search
// finds what is there is shown first, by words left on purpose.
//
// It comes in by the door as everybody does, looks at the stores from below, and
// changes nothing of anybody else's. What it finds it names by its place, and never
// shows.
package prove

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Options of a run. All are required unless they say otherwise.
type Options struct {
	URL    string // of the API
	Places []Place
	// Address makes the mail address that holds a text. Who owns its domain gets the
	// mails.
	Address func(text string) string
	// Code is the one in the newest mail to an address.
	Code func(ctx context.Context, address string) (string, error)
	// Hire makes an account for a member of staff, and Role gives it a role or "none".
	Hire func(ctx context.Context, address, password string) (subject string, err error)
	Role func(ctx context.Context, subject, role string) error
	// Import puts an export into a person's account.
	Import func(ctx context.Context, subject string, archive []byte) error
	// Used reports whether it is written that the person used something.
	Used func(ctx context.Context, subject string) (bool, error)
	// Idle reports whether no work of the person's is left.
	Idle func(ctx context.Context, subject string) (bool, error)
	// Verified checks the saved receipt.
	Verified func(receipt []byte) error
	// PlantIn are places in which a canary is left on purpose before the last look,
	// to see a run fail; usually none.
	PlantIn []string
	// Wait is how long the erasure may take.
	Wait time.Duration
	// Tell is told what is being done; it may be nil.
	Tell func(string)
}

// A Report is what came of a run.
type Report struct {
	Account  string        `json:"account"` // id of the erased account, which leads to nobody
	Receipt  string        `json:"receipt"` // id of the receipt of its erasure
	Sent     []string      `json:"sent"`    // inputs that took a canary
	NotSent  []string      `json:"not_sent"`
	Exported []string      `json:"exported"` // inputs whose canary the person's export holds
	Erased   time.Duration `json:"erased_after_ns"`
	Places   []PlaceReport `json:"places"`
}

// A PlaceReport is what came of one place.
type PlaceReport struct {
	Name     string `json:"place"`
	Control  string `json:"control"` // what became of the canary left there on purpose
	Readable string `json:"readable_while_it_lives,omitempty"`
	Life     Count  `json:"while_the_account_lives"`
	After    Count  `json:"after_its_erasure"`
}

// Wrong is everything that must not be, in words; empty when all is proven.
func (r Report) Wrong() (all []string) {
	for _, p := range r.Places {
		if p.Readable == "" {
			all = append(all, told(p.Name, "while the account lives", p.Life)...)
		}
		all = append(all, told(p.Name, "after its erasure", p.After)...)
	}
	return all
}

func told(place, when string, c Count) (all []string) {
	for _, f := range c.Found {
		if f.Open != "" {
			continue
		}
		text := fmt.Sprintf("%s, %s: %s holds a canary, %s, %d times", place, when, f.Where, f.Kind, f.Times)
		if f.Input != "" {
			text += ", which was sent as " + f.Input
		}
		all = append(all, text)
	}
	return all
}

type run struct {
	Options
	began  time.Time
	canary Canary
	person *person
	report Report
}

// Run is the whole of it. An error means that nothing is proven; that something
// was found is told by the report.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	for _, name := range o.PlantIn {
		i := slices.IndexFunc(o.Places, func(p Place) bool { return p.Name == name })
		if i < 0 || o.Places[i].Plant == nil {
			return Report{}, fmt.Errorf("in %q nothing can be planted; there are %s", name, strings.Join(plantable(o.Places), ", "))
		}
	}
	r := &run{Options: o, began: time.Now(), canary: NewCanary()}
	r.report.Places = make([]PlaceReport, len(o.Places))
	for i, p := range o.Places {
		r.report.Places[i] = PlaceReport{Name: p.Name, Readable: p.Readable}
	}
	err := r.all(ctx)
	return r.report, err
}

func plantable(places []Place) (names []string) {
	for _, p := range places {
		if p.Plant != nil {
			names = append(names, p.Name)
		}
	}
	return names
}

func (r *run) all(ctx context.Context) error {
	r.Tell("leaving a canary in each place, and finding it")
	for i, p := range r.Places {
		if err := r.control(ctx, i, p); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	r.Tell("a new person signs up and uses everything")
	r.person = newPerson(r.URL, r.canary)
	if err := r.live(ctx); err != nil {
		return err
	}
	r.Tell("looking through everything while the account lives")
	if err := r.look(ctx, func(p *PlaceReport) *Count { return &p.Life }); err != nil {
		return err
	}
	r.Tell("the account is closed and erased")
	if err := r.erase(ctx); err != nil {
		return err
	}
	for _, name := range r.PlantIn {
		i := slices.IndexFunc(r.Places, func(p Place) bool { return p.Name == name })
		_, remove, err := r.Places[i].Plant(ctx, r.canary)
		if err != nil {
			return fmt.Errorf("leave a canary in %s: %w", name, err)
		}
		defer func() { _ = remove(context.WithoutCancel(ctx)) }()
	}
	r.Tell("looking through everything after the erasure")
	return r.look(ctx, func(p *PlaceReport) *Count { return &p.After })
}

func (r *run) search(c Canary) *Search {
	s := &Search{finder: newFinder(c), since: r.began, count: Count{Found: []Finding{}}}
	if r.person != nil {
		s.inputs, s.ids = slices.Concat(r.person.sent, []string{"password"}), r.person.requests
	}
	return s
}

// control leaves another canary in a place and must find it in everything that it
// was written as.
func (r *run) control(ctx context.Context, i int, p Place) error {
	if p.Plant == nil {
		r.report.Places[i].Control = "not planted: " + p.Why
		return nil
	}
	c := NewCanary()
	as, remove, err := p.Plant(ctx, c)
	if err != nil {
		return fmt.Errorf("leave a canary: %w", err)
	}
	s := r.search(c)
	err = errors.Join(p.Look(ctx, s), remove(context.WithoutCancel(ctx)))
	if err != nil {
		return err
	}
	for _, kind := range as {
		times := 0
		for _, f := range s.count.Found {
			if f.Kind == kind {
				times += f.Times
			}
		}
		if times < max(p.Copies, 1) {
			return fmt.Errorf("the canary left on purpose, written as %s, was not found: that nothing is found there proves nothing", kind)
		}
	}
	r.report.Places[i].Control = fmt.Sprintf("found, in %d of %d kinds", len(as), len(as))
	return nil
}

func (r *run) look(ctx context.Context, into func(*PlaceReport) *Count) error {
	for i, p := range r.Places {
		s := r.search(r.canary)
		s.open = p.Open
		if err := p.Look(ctx, s); err != nil {
			return fmt.Errorf("look through %s: %w", p.Name, err)
		}
		if p.Name == "logs" && !s.count.Request {
			return errors.New("logs: none of our requests stands in them, so they are not the logs of this installation, or their level is above info")
		}
		if c := s.count; p.Filled && (len(c.Empty) > 0 || c.Bytes == 0 && c.Older == 0) {
			return fmt.Errorf("%s: nothing lies in %s, so that nothing is found there proves nothing", p.Name, cmp.Or(strings.Join(c.Empty, ", "), "it"))
		}
		*into(&r.report.Places[i]) = s.count
	}
	return nil
}

// live does everything that people do, until no work is left.
func (r *run) live(ctx context.Context) error {
	p := r.person
	err := p.live(ctx, r.Options)
	r.report.Account, r.report.Sent, r.report.NotSent, r.report.Exported = p.id, p.sent, p.unsent(), p.exported
	if err != nil {
		return err
	}
	// From here on no more of it is written.
	err = r.until(ctx, "it is written that the person used something", func() (bool, error) { return r.Used(ctx, p.id) })
	if err == nil {
		err = p.object(ctx)
	}
	if err != nil {
		return err
	}
	return r.until(ctx, "all work for the person has ended", func() (bool, error) { return r.Idle(ctx, p.id) })
}

func (r *run) erase(ctx context.Context) error {
	closed := time.Now()
	for _, p := range []*person{r.person.clerk, r.person} {
		key, err := p.close(ctx)
		if err != nil {
			return err
		}
		p.closed = key
	}
	if err := r.person.complete(); err != nil {
		return err
	}
	r.report.Receipt = r.person.closed.ID
	for _, p := range []*person{r.person, r.person.clerk} {
		var saved []byte
		err := r.until(ctx, "the receipt of the erasure is complete (zimage erasure list says why it is not)", func() (done bool, err error) {
			saved, done, err = p.receipt(ctx)
			return done, err
		})
		if err == nil {
			err = r.Verified(saved)
		}
		if err != nil {
			return err
		}
	}
	r.report.Erased = time.Since(closed)
	return r.person.hidden(ctx)
}

// until asks every second, for as long as an erasure may take.
func (r *run) until(ctx context.Context, what string, done func() (bool, error)) error {
	end := time.Now().Add(r.Wait)
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %v: %s", r.Wait, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
