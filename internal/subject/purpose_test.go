package subject_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

const ok = problem.Code("")

func change(t *testing.T, d *db.DB, f func(ctx context.Context, tx *db.Tx) error) {
	t.Helper()
	if err := d.Tx(context.Background(), func(tx *db.Tx) error { return f(context.Background(), tx) }); err != nil {
		t.Fatal(err)
	}
}

// setConsent is SetConsent for those who do not ask whether it was news.
func setConsent(ctx context.Context, tx *db.Tx, owner string, purpose subject.Purpose, granted bool, version string, at time.Time) error {
	_, err := subject.SetConsent(ctx, tx, owner, purpose, granted, version, at)
	return err
}

// Every purpose in every state a living account can be in. One that is not in
// this table is a purpose that nobody has thought through.
func TestPromise_G6_WhatIsAllowedInWhichState(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		const no = problem.Forbidden
		table := map[subject.Purpose][4]problem.Code{ // active, restricted, suspended, both
			subject.Read: {ok, ok, ok, ok}, subject.Account: {ok, ok, ok, ok}, subject.Notice: {ok, ok, ok, ok},
			subject.Generate: {ok, no, no, no}, subject.Deliver: {ok, no, no, no},
			subject.Marketing: {ok, no, no, no}, subject.Training: {ok, no, no, no}, subject.Analytics: {ok, no, no, no}, subject.Profiling: {ok, no, no, no},
			subject.Statistics: {ok, no, ok, no},
		}
		add(t, d, "sub_a")
		for _, p := range subject.ConsentPurposes() {
			change(t, d, func(ctx context.Context, tx *db.Tx) error {
				return setConsent(ctx, tx, "sub_a", p, true, "v1", now)
			})
		}
		// Each refusal says why, to programs and to people.
		why := [4]subject.Reason{"", subject.BecauseRestricted, subject.BecauseSuspended, subject.BecauseRestricted}
		states := []func(ctx context.Context, tx *db.Tx) error{
			func(context.Context, *db.Tx) error { return nil },
			func(ctx context.Context, tx *db.Tx) error { return subject.Restrict(ctx, tx, "sub_a", now) },
			func(ctx context.Context, tx *db.Tx) error {
				if err := subject.Unrestrict(ctx, tx, "sub_a"); err != nil {
					return err
				}
				return subject.Suspend(ctx, tx, "sub_a", now)
			},
			func(ctx context.Context, tx *db.Tx) error { return subject.Restrict(ctx, tx, "sub_a", now) },
		}
		for i, set := range states {
			change(t, d, set)
			for p, want := range table {
				err := subject.May(ctx, d, "sub_a", p)
				expect(t, string(p), err, want[i])
				if want[i] != no {
					continue
				}
				if got, ok := subject.ReasonOf(err); !ok || got != why[i] {
					t.Errorf("%s in state %d: refused as %q, want %q", p, i, got, why[i])
				}
				if text, ok := why[i].Words(); !ok || !strings.Contains(err.Error(), text) {
					t.Errorf("%s in state %d: %v does not say %q", p, i, err, text)
				}
			}
		}
		// Lifting one leaves the other.
		change(t, d, func(ctx context.Context, tx *db.Tx) error { return subject.Unsuspend(ctx, tx, "sub_a") })
		err := subject.May(ctx, d, "sub_a", subject.Generate)
		expect(t, "still restricted", err, no)
		if err == nil || !strings.Contains(err.Error(), "restricted") {
			t.Errorf("the refusal does not say why: %v", err)
		}
	})
}

func TestPromise_A7_NothingBeyondTheContractWithoutConsent(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		add(t, d, "sub_a")
		add(t, d, "sub_b")
		word := func(p subject.Purpose, granted bool, at time.Time) {
			t.Helper()
			change(t, d, func(ctx context.Context, tx *db.Tx) error {
				return setConsent(ctx, tx, "sub_a", p, granted, "v1", at)
			})
		}
		for _, p := range []subject.Purpose{subject.Profiling, subject.Training, subject.Marketing, subject.Analytics} {
			expect(t, "never asked: "+string(p), subject.May(ctx, d, "sub_a", p), problem.Forbidden)
			word(p, true, now)
			expect(t, "granted: "+string(p), subject.May(ctx, d, "sub_a", p), ok)
			expect(t, "another's consent: "+string(p), subject.May(ctx, d, "sub_b", p), problem.Forbidden)
			word(p, false, now) // in the same millisecond: the refusal counts
			expect(t, "taken back: "+string(p), subject.May(ctx, d, "sub_a", p), problem.Forbidden)
			word(p, true, now.Add(time.Hour))
			expect(t, "granted again: "+string(p), subject.May(ctx, d, "sub_a", p), ok)
			word(p, false, now.Add(2*time.Hour))
		}
		var words int
		if err := d.Get(ctx, &words, `SELECT count(*) FROM consents`); err != nil || words != 16 {
			t.Errorf("%d words are kept as proof, want 16 (%v)", words, err)
		}
		err := d.Tx(ctx, func(tx *db.Tx) error { return setConsent(ctx, tx, "sub_a", subject.Generate, true, "v1", now) })
		expect(t, "a consent to what needs none", err, problem.InvalidRequest)
	})
}

func TestPromise_G7_AnObjectionStopsTheUseAtOnce(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		add(t, d, "sub_a")
		add(t, d, "sub_b")
		expect(t, "before", subject.May(ctx, d, "sub_a", subject.Statistics), ok)
		for range 2 { // objecting twice changes nothing
			change(t, d, func(ctx context.Context, tx *db.Tx) error {
				_, err := subject.Object(ctx, tx, "sub_a", subject.Statistics, now)
				return err
			})
		}
		err := subject.May(ctx, d, "sub_a", subject.Statistics)
		expect(t, "objected", err, problem.Forbidden)
		if err == nil || !strings.Contains(err.Error(), "objects") {
			t.Errorf("the refusal does not say why: %v", err)
		}
		expect(t, "another's", subject.May(ctx, d, "sub_b", subject.Statistics), ok)
		expect(t, "another use", subject.May(ctx, d, "sub_a", subject.Generate), ok)
		change(t, d, func(ctx context.Context, tx *db.Tx) error {
			_, err := subject.WithdrawObjection(ctx, tx, "sub_a", subject.Statistics)
			return err
		})
		expect(t, "withdrawn", subject.May(ctx, d, "sub_a", subject.Statistics), ok)
		expect(t, "what rests on the contract", d.Tx(ctx, func(tx *db.Tx) error { _, err := subject.Object(ctx, tx, "sub_a", subject.Generate, now); return err }), problem.InvalidRequest)
	})
}

// The proof of consent grows with changes of mind, and not with clicks.
func TestTheSameWordAgainIsNotKept(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		add(t, d, "sub_a")
		for i, c := range []struct {
			granted bool
			version string
			rows    int
		}{
			{false, "v1", 1}, // never asked before: a word of its own
			{false, "v1", 1}, {true, "v1", 2}, {true, "v1", 2}, {true, "v2", 3}, {true, "v2", 3}, {false, "v2", 4}, {true, "v2", 5},
		} {
			at := now.Add(time.Duration(i) * time.Second)
			change(t, d, func(ctx context.Context, tx *db.Tx) error {
				return setConsent(ctx, tx, "sub_a", subject.Training, c.granted, c.version, at)
			})
			var rows int
			if err := d.Get(ctx, &rows, `SELECT count(*) FROM consents`); err != nil || rows != c.rows {
				t.Errorf("after word %d: %d rows, want %d (%v)", i, rows, c.rows, err)
			}
		}
		change(t, d, func(ctx context.Context, tx *db.Tx) error {
			return setConsent(ctx, tx, "sub_a", subject.Marketing, true, "v2", now) // another purpose
		})
		list, err := subject.Consents(ctx, d, "sub_a")
		for _, c := range list {
			if c.Purpose == subject.Training && (!c.Granted || c.PolicyVersion != "v2" || !c.At.Equal(now.Add(7*time.Second))) {
				t.Errorf("%+v", c)
			}
			if c.Purpose == subject.Marketing && !c.Granted {
				t.Errorf("%+v", c)
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}
