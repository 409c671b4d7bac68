package generate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

// forbidden is one way in which a person's work is forbidden, and how it ends.
type forbidden struct {
	event      events.Type
	forbid     func(ctx context.Context, tx *db.Tx, owner string, now time.Time) error
	lift       func(ctx context.Context, tx *db.Tx, owner string) error // nil: never
	code, text string
}

var ways = []forbidden{
	{events.AccountRestricted, subject.Restrict, subject.Unrestrict, "restricted", "restricted at its owner's request"},
	{events.AccountSuspended, subject.Suspend, subject.Unsuspend, "suspended", "suspended"},
	{events.AccountClosing, func(ctx context.Context, tx *db.Tx, owner string, now time.Time) error {
		_, err := subject.Close(ctx, tx, owner, now)
		return err
	}, nil, "account_closed", "closed"},
}

// tx runs what account does, in one transaction.
func (r *rig) tx(f func(ctx context.Context, tx *db.Tx) error) {
	r.t.Helper()
	if err := r.db.Tx(r.t.Context(), func(tx *db.Tx) error { return f(r.t.Context(), tx) }); err != nil {
		r.t.Fatal(err)
	}
}

// forbid does it as account does; quietly means that nobody is told to stop.
func (r *rig) forbid(way forbidden, owner string, quietly bool) {
	r.t.Helper()
	r.tx(func(ctx context.Context, tx *db.Tx) error {
		if err := way.forbid(ctx, tx, owner, r.clock.Now()); err != nil || quietly {
			return err
		}
		return r.service.Events.Append(ctx, tx, events.Event{Type: way.event, Subject: owner, Ref: owner, At: r.clock.Now()})
	})
}

// check wants one end and one reason, whether who was told to stop or who asked comes
// first.
func (way forbidden) check(t *testing.T, g Generation) {
	t.Helper()
	if g.Status != Canceled || g.Failure == nil || g.Failure.Code != way.code || !strings.Contains(g.Failure.Message, way.text) {
		t.Errorf("%s with %+v, want %s: …%s…", g.Status, g.Failure, way.code, way.text)
	}
}

// What runs and what waits is stopped, and says why to whoever looks or watches.
func TestPromise_G6_ForbiddenWorkStopsAndSaysWhy(t *testing.T) {
	for _, way := range ways {
		t.Run(way.code, func(t *testing.T) {
			stacks(t, setup{}, func(t *testing.T, r *rig) {
				door := newGate(false)
				r.engine.play(door.script)
				running := r.submit(r.ada)
				<-door.entered
				queued, bens := r.submit(r.ada), r.submit(r.ben)
				w, err := r.watchers().Watch(t.Context(), r.ada, running.ID, running.Sequence+1)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				r.forbid(way, r.ada, false)
				for _, g := range []Generation{running, queued} {
					way.check(t, r.await(r.ada, g.ID, Canceled))
					// Told after the commit that is seen already.
					testenv.Eventually(t, 10*time.Second, func() bool { return r.told.of(events.GenerationCanceled, g.ID) > 0 })
					if n := r.told.of(events.GenerationCanceled, g.ID); n != 1 {
						t.Errorf("the end was told %d times", n)
					}
				}
				list, _, err := r.service.List(t.Context(), r.ada, Page{})
				if err != nil || len(list) != 2 {
					t.Fatalf("%d listed (%v)", len(list), err)
				}
				way.check(t, list[0])
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				for {
					u, err := w.Next(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if u.Generation.Status.Terminal() {
						way.check(t, u.Generation)
						break
					}
				}
				close(door.open)
				r.await(r.ben, bens.ID, Succeeded)
				if n := r.count(`SELECT count(*) FROM images WHERE owner = ?`, r.ada); n != 0 {
					t.Errorf("%d images", n)
				}
			})
		})
	}
}

// One's own cancel needs no explanation, and stays one's own whatever comes later.
func TestACancelOfOnesOwnIsNoFailure(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		door := newGate(false)
		r.engine.play(door.script)
		running := r.submit(r.ada)
		<-door.entered
		queued := r.submit(r.ada)
		for _, g := range []Generation{running, queued} {
			if _, err := r.service.Cancel(t.Context(), r.ada, g.ID); err != nil {
				t.Fatal(err)
			}
		}
		r.forbid(ways[0], r.ada, false)
		for _, g := range []Generation{running, queued} {
			if g := r.await(r.ada, g.ID, Canceled); g.Failure != nil {
				t.Errorf("canceled with %+v", g.Failure)
			}
		}
	})
}

// The word to stop may come late: after the restriction was lifted and new work
// was accepted, which is none of its business.
func TestPromise_G6_WorkAcceptedAfterTheLiftIsDone(t *testing.T) {
	for _, way := range ways {
		if way.lift == nil {
			continue
		}
		t.Run(way.code, func(t *testing.T) {
			stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
				before := r.submit(r.ada)
				r.forbid(way, r.ada, false)
				r.clock.Advance(time.Second)
				r.tx(func(ctx context.Context, tx *db.Tx) error { return way.lift(ctx, tx, r.ada) })
				after := r.submit(r.ada)
				door := newGate(false) // so that the word comes while it is at work
				r.engine.play(door.script)
				r.work()
				testenv.Eventually(t, 20*time.Second, func() bool {
					return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state = 'succeeded'`, KindCancelAll) == 1
				})
				way.check(t, r.await(r.ada, before.ID, Canceled))
				close(door.open)
				r.await(r.ada, after.ID, Succeeded)
			})
		})
	}
}

func TestPromise_G6_WhatMayNotRunIsNotSentToTheEngine(t *testing.T) {
	for name, quietly := range map[string]bool{"told to stop": false, "not told to stop": true} {
		t.Run(name, func(t *testing.T) {
			stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
				ctx := t.Context()
				removed, expired := r.submit(r.ada), r.submit(r.ada, func(q *Request) { q.RetentionDays = 1 })
				made := map[string]Generation{}
				for _, way := range ways {
					made[way.code] = r.submit(r.person("sub_" + way.code))
				}
				if err := r.service.Delete(ctx, r.ada, removed.ID); err != nil {
					t.Fatal(err)
				}
				r.clock.Advance(24*time.Hour + time.Second)
				gone := r.submit(r.ada)
				if _, err := r.db.Exec(ctx, `DELETE FROM generations WHERE id = ?`, gone.ID); err != nil {
					t.Fatal(err)
				}
				for _, way := range ways {
					r.forbid(way, "sub_"+way.code, quietly)
				}
				r.work()
				testenv.Eventually(t, 20*time.Second, func() bool {
					return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state IN ('failed', 'canceled')`, KindRun) == 3+len(ways)
				})
				if n := len(r.engine.made()); n != 0 {
					t.Errorf("the engine was asked %d times", n)
				}
				for _, way := range ways {
					way.check(t, r.get("sub_"+way.code, made[way.code].ID))
				}
				_, err := r.service.Get(ctx, r.ada, expired.ID)
				wantCode(t, err, problem.DataRemoved)
			})
		})
	}
}

// What forbids the work while an engine is at it: nothing comes of it, also when
// the word to stop comes too late.
func TestPromise_G6_WorkThatIsForbiddenMeanwhileLeavesNoPicture(t *testing.T) {
	stacks(t, setup{slots: 3}, func(t *testing.T, r *rig) {
		door := newGate(false)
		r.engine.play(door.script)
		made := map[string]Generation{}
		for _, way := range ways {
			made[way.code] = r.submit(r.person("sub_" + way.code))
		}
		for range ways {
			<-door.entered
		}
		for _, way := range ways {
			r.forbid(way, "sub_"+way.code, true)
		}
		close(door.open)
		for _, way := range ways {
			owner := "sub_" + way.code
			way.check(t, r.await(owner, made[way.code].ID, Canceled))
			testenv.Eventually(t, 20*time.Second, func() bool { return len(r.objects(prefix(owner, made[way.code].ID))) == 0 })
		}
		if n := r.count(`SELECT count(*) FROM images`); n != 0 {
			t.Errorf("%d images", n)
		}
	})
}

// Work that ends at the moment in which it is forbidden: what commits first wins.
func TestPromise_G6_WorkThatEndsWhileItIsBeingForbiddenLeavesNoPicture(t *testing.T) {
	for _, way := range ways {
		t.Run(way.code, func(t *testing.T) {
			stacks(t, setup{}, func(t *testing.T, r *rig) {
				door := newGate(true)
				r.engine.play(door.script)
				g := r.submit(r.ada)
				<-door.entered
				first, second := testenv.Overtaken(t, r.db,
					func(tx *db.Tx) error { return way.forbid(t.Context(), tx, r.ada, r.clock.Now()) },
					func() error {
						close(door.open)
						for range 2000 {
							j, err := jobs.Find(t.Context(), r.db, r.jobOf(g))
							if err != nil || j.State.Terminal() {
								return err
							}
							time.Sleep(10 * time.Millisecond)
						}
						return errors.New("it does not end")
					})
				if err := errors.Join(first, second); err != nil {
					t.Fatal(err)
				}
				way.check(t, r.await(r.ada, g.ID, Canceled))
				if n := r.count(`SELECT count(*) FROM images`); n != 0 {
					t.Errorf("%d images", n)
				}
			})
		})
	}
}

func (r *rig) jobOf(g Generation) (id string) {
	if err := r.db.Get(context.Background(), &id, `SELECT job_id FROM generations WHERE id = ?`, g.ID); err != nil {
		r.t.Error(err)
	}
	return id
}
