package subject_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

var now = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

func add(t *testing.T, d *db.DB, id string) {
	t.Helper()
	if err := d.Tx(context.Background(), func(tx *db.Tx) error { return subject.New(context.Background(), tx, id, now) }); err != nil {
		t.Fatal(err)
	}
}

func TestMay(t *testing.T) {
	t.Parallel()

	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		add(t, d, "sub_a")
		add(t, d, "sub_other") // stays active
		for _, c := range []struct {
			change                  string
			generate, read, unknown problem.Code
		}{
			{`state = 'active'`, ok, ok, problem.Forbidden},
			{`restricted_at = 1`, problem.Forbidden, ok, problem.Forbidden},
			{`restricted_at = NULL, suspended_at = 1`, problem.Forbidden, ok, problem.Forbidden},
			{`suspended_at = NULL, state = 'closing'`, problem.Unauthorized, problem.Unauthorized, problem.Unauthorized},
			{`state = 'erased'`, problem.Unauthorized, problem.Unauthorized, problem.Unauthorized},
			{`state = 'newer than this program'`, problem.Forbidden, problem.Forbidden, problem.Forbidden},
		} {
			if _, err := d.Exec(ctx, `UPDATE subjects SET `+c.change+` WHERE id = 'sub_a'`); err != nil {
				t.Fatal(err)
			}
			for purpose, want := range map[subject.Purpose]problem.Code{subject.Generate: c.generate, subject.Read: c.read, "sell": c.unknown} {
				expect(t, c.change+" "+string(purpose), subject.May(ctx, d, "sub_a", purpose), want)
			}
		}
		expect(t, "unknown", subject.May(ctx, d, "sub_none", subject.Read), problem.Unauthorized)
		for id, want := range map[string]subject.Reason{"sub_a": subject.BecauseUnknown, "sub_none": subject.BecauseClosed} {
			if why, ok := subject.ReasonOf(subject.May(ctx, d, id, subject.Read)); !ok || why != want {
				t.Errorf("%s is refused as %q, want %q", id, why, want)
			}
		}
		if _, ok := subject.ReasonOf(context.Canceled); ok {
			t.Error("a failure counts as a refusal")
		}
		expect(t, "another", subject.May(ctx, d, "sub_other", subject.Generate), ok)
	})
}

func expect(t *testing.T, what string, err error, want problem.Code) {
	t.Helper()
	if err == nil && want == "" {
		return
	}
	var p *problem.Error
	if !errors.As(err, &p) || p.Code != want || p.Message == "" {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

func TestNewTakesAnIDOnce(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		add(t, d, "sub_a")
		err := d.Tx(context.Background(), func(tx *db.Tx) error { return subject.New(context.Background(), tx, "sub_a", now) })
		if !db.IsUnique(err) {
			t.Errorf("a second time: %v", err)
		}
	})
}

func TestErasedIsForGood(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		add(t, d, "sub_a")
		erase := func() error {
			return d.Tx(ctx, func(tx *db.Tx) error { return subject.Erase(ctx, tx, "sub_a", now) })
		}
		if erase() == nil {
			t.Error("an active account was erased")
		}
		change(t, d, func(ctx context.Context, tx *db.Tx) error {
			_, err := subject.Close(ctx, tx, "sub_a", now)
			return err
		})
		for range 2 {
			if err := erase(); err != nil {
				t.Error(err)
			}
		}
		change(t, d, func(ctx context.Context, tx *db.Tx) error {
			if closed, err := subject.Close(ctx, tx, "sub_a", now); closed || err != nil {
				t.Errorf("closed again: %v, %v", closed, err)
			}
			return nil
		})
		if s, err := subject.Find(ctx, d, "sub_a"); err != nil || s.State != subject.Erased {
			t.Errorf("%+v, %v", s, err)
		}
		expect(t, "reading", subject.May(ctx, d, "sub_a", subject.Read), problem.Unauthorized)
	})
}
