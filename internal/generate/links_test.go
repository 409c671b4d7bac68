package generate

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// opened is what a link leads to.
func (r *rig) opened(open func(context.Context, string) (Content, error), token string) []byte {
	r.t.Helper()
	c, err := open(r.t.Context(), token)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	data, err := io.ReadAll(c)
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

func (r *rig) signed(image string, thumbnail bool, life time.Duration) Link {
	r.t.Helper()
	l, err := r.service.SignLink(r.t.Context(), r.ada, image, thumbnail, life)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (r *rig) change(f func(tx *db.Tx) error) {
	r.t.Helper()
	if err := r.db.Tx(context.Background(), f); err != nil {
		r.t.Fatal(err)
	}
}

// dead wants the one answer of every link that opens nothing.
func dead(t *testing.T, what string, err error) {
	t.Helper()
	if err != errNoLink { //nolint:errorlint // it is the same to the letter, and no cause tells more
		t.Errorf("%s: %v, want %v", what, err, errNoLink)
	}
}

func TestASignedLinkOpensOnePictureForItsTime(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx, s := t.Context(), r.service
		g := r.made(r.ada, func(q *Request) { q.N, q.RetentionDays = 2, 1 })
		one, other := g.Images[0].ID, g.Images[1].ID
		usual, short := r.signed(one, false, 0), r.signed(one, true, time.Minute)
		if want := r.clock.Now().Add(time.Hour); !usual.ExpiresAt.Equal(want) {
			t.Errorf("it ends at %s, want %s", usual.ExpiresAt, want)
		}
		if !bytes.Equal(r.opened(s.Linked, usual.Token), r.content(r.ada, one, false)) || !bytes.Equal(r.opened(s.Linked, short.Token), r.content(r.ada, one, true)) {
			t.Error("it opens something else")
		}
		for _, life := range []time.Duration{-time.Second, time.Millisecond, LongestLink + time.Second} {
			_, err := s.SignLink(ctx, r.ada, one, false, life)
			wantCode(t, err, problem.InvalidRequest)
		}
		_, err := s.SignLink(ctx, r.ben, one, false, 0)
		wantCode(t, err, problem.NotFound)

		// Nothing of it can be changed, and nothing made up.
		raw, err := base64.RawURLEncoding.DecodeString(usual.Token)
		if err != nil {
			t.Fatal(err)
		}
		for i := range raw {
			changed := bytes.Clone(raw)
			changed[i] ^= 1
			_, err := s.Linked(ctx, base64.RawURLEncoding.EncodeToString(changed))
			dead(t, "one bit is another", err)
		}
		for _, token := range []string{"", "x", usual.Token[:40], usual.Token + "AAAA", usual.Token + "\n", " " + usual.Token, one, string(raw)} {
			_, err := s.Linked(ctx, token)
			dead(t, "made up", err)
		}

		r.clock.Advance(time.Minute)
		_, err = s.Linked(ctx, short.Token)
		dead(t, "its time is over", err)
		r.opened(s.Linked, usual.Token)

		// Never longer than the picture, and gone with it.
		r.clock.Advance(g.ExpiresAt.Sub(r.clock.Now()) - 10*time.Minute)
		last := r.signed(one, false, 0)
		if !last.ExpiresAt.Equal(g.ExpiresAt) {
			t.Errorf("it ends at %s, the picture at %s", last.ExpiresAt, g.ExpiresAt)
		}
		beside := r.signed(other, false, 0)
		if err := s.DeleteImage(ctx, r.ada, one); err != nil {
			t.Fatal(err)
		}
		_, err = s.Linked(ctx, last.Token)
		dead(t, "the picture is deleted", err)
		_, err = s.SignLink(ctx, r.ada, one, false, 0)
		wantCode(t, err, problem.DataRemoved)
		r.opened(s.Linked, beside.Token)
		r.clock.Advance(10 * time.Minute)
		_, err = s.Linked(ctx, beside.Token)
		dead(t, "the picture has expired", err)
	})
}

func TestSignedLinksAreRevokedAtOnce(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx, s := t.Context(), r.service
		image := r.made(r.ada).Images[0].ID
		bens, err := s.SignLink(ctx, r.ben, r.made(r.ben).Images[0].ID, false, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			link, thumbnail := r.signed(image, false, LongestLink), r.signed(image, true, 0)
			r.opened(s.Linked, link.Token)
			if err := s.RevokeLinks(ctx, r.ada); err != nil {
				t.Fatal(err)
			}
			for _, l := range []Link{link, thumbnail} {
				_, err := s.Linked(ctx, l.Token)
				dead(t, "revoked", err)
			}
		}
		r.opened(s.Linked, r.signed(image, false, 0).Token)
		r.opened(s.Linked, bens.Token)
	})
}

// pauses tries what opens a picture of ada's to others, while nothing of hers may
// be delivered and afterwards.
func pauses(t *testing.T, r *rig, make, open func() error) {
	t.Helper()
	now := r.clock.Now()
	states := []struct {
		name        string
		begin, lift func(ctx context.Context, tx *db.Tx) error
		want        problem.Code
	}{
		{"restricted", func(ctx context.Context, tx *db.Tx) error { return subject.Restrict(ctx, tx, r.ada, now) },
			func(ctx context.Context, tx *db.Tx) error { return subject.Unrestrict(ctx, tx, r.ada) }, problem.Forbidden},
		{"suspended", func(ctx context.Context, tx *db.Tx) error { return subject.Suspend(ctx, tx, r.ada, now) },
			func(ctx context.Context, tx *db.Tx) error { return subject.Unsuspend(ctx, tx, r.ada) }, problem.Forbidden},
		{"closing", func(ctx context.Context, tx *db.Tx) error { _, err := subject.Close(ctx, tx, r.ada, now); return err }, nil, problem.Unauthorized},
	}
	for _, state := range states {
		if err := open(); err != nil {
			t.Fatalf("before it was %s: %v", state.name, err)
		}
		r.change(func(tx *db.Tx) error { return state.begin(context.Background(), tx) })
		dead(t, state.name, open())
		if err := make(); problem.CodeOf(err) != state.want {
			t.Errorf("made while %s: %v", state.name, err)
		}
		if state.lift != nil {
			r.change(func(tx *db.Tx) error { return state.lift(context.Background(), tx) })
		}
	}
}

func TestPromise_G6_SignedLinksPauseAndEnd(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		image := r.made(r.ada).Images[0].ID
		link := r.signed(image, false, 0)
		pauses(t, r, func() error {
			_, err := r.service.SignLink(t.Context(), r.ada, image, false, 0)
			return err
		}, func() error {
			c, err := r.service.Linked(t.Context(), link.Token)
			if err == nil {
				err = c.Close()
			}
			return err
		})
	})
}
