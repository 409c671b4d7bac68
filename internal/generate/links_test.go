package generate

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
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

		// A request that is late writes nothing of somebody who has left.
		r.change(func(tx *db.Tx) error { _, err := subject.Close(ctx, tx, r.ben, r.clock.Now()); return err })
		wantCode(t, s.RevokeLinks(ctx, r.ben), problem.Unauthorized)
		if n := r.count(`SELECT count(*) FROM link_epochs WHERE owner = ?`, r.ben); n != 0 {
			t.Errorf("%d epochs are there", n)
		}
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

func (r *rig) shared(image string, life time.Duration) Share {
	r.t.Helper()
	r.clock.Advance(time.Millisecond) // ids of one millisecond have no order
	h, err := r.service.Share(r.t.Context(), r.ada, image, life)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// closed wants nothing behind the link of a share, for page and picture.
func (r *rig) closed(what, token string) {
	r.t.Helper()
	_, err := r.service.Shared(r.t.Context(), token)
	dead(r.t, what, err)
	_, err = r.service.SharedContent(r.t.Context(), token)
	dead(r.t, what, err)
}

func TestPromise_C3_AShareIsDeliberateListedAndEnds(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx, s := t.Context(), r.service
		if n := r.count(`SELECT count(*) FROM shares`); n != 0 {
			t.Fatalf("%d shares before anybody shared", n)
		}
		g := r.made(r.ada, func(q *Request) { q.N, q.RetentionDays = 2, 30 })
		if n := r.count(`SELECT count(*) FROM shares`); n != 0 {
			t.Fatalf("a picture is shared by itself")
		}
		one, other := g.Images[0].ID, g.Images[1].ID
		week, minute, long := r.shared(one, 0), r.shared(one, time.Minute), r.shared(other, LongestShare)
		if want := week.CreatedAt.Add(7 * 24 * time.Hour); !week.ExpiresAt.Equal(want) || !long.ExpiresAt.Equal(g.ExpiresAt) {
			t.Errorf("they end at %s and %s, want %s and, with the picture, %s", week.ExpiresAt, long.ExpiresAt, want, g.ExpiresAt)
		}
		if !bytes.Equal(r.opened(s.SharedContent, week.Token), r.content(r.ada, one, false)) {
			t.Error("it opens something else")
		}
		shown, err := s.Shared(ctx, week.Token)
		if err != nil || shown.Width != 64 || shown.SourceType != "algorithmicMedia" || !shown.ExpiresAt.Equal(week.ExpiresAt) {
			t.Errorf("%+v (%v)", shown, err)
		}
		// The token is kept nowhere, and is worth nothing when it is changed.
		if n := r.count(`SELECT count(*) FROM shares WHERE token_lookup = ? OR id = ?`, week.Token, week.Token); n != 0 {
			t.Error("the token stands in the database")
		}
		for i := range week.Token {
			changed := []byte(week.Token)
			changed[i] = 'a' + (changed[i]-'a'+1)%26
			r.closed("changed", string(changed))
		}
		for _, token := range []string{"", "x", week.ID, week.Token + "a", week.Token[1:] + "\n", r.signed(one, false, 0).Token} {
			r.closed("made up", token)
		}
		for _, life := range []time.Duration{-1, time.Millisecond, LongestShare + time.Second} {
			_, err := s.Share(ctx, r.ada, one, life)
			wantCode(t, err, problem.InvalidRequest)
		}
		_, err = s.Share(ctx, r.ben, one, 0)
		wantCode(t, err, problem.NotFound)

		list := func(owner string) (ids []string) {
			t.Helper()
			all, err := s.Shares(ctx, owner, "", 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range all {
				if h.Token != "" || h.ImageID == "" || h.ExpiresAt.IsZero() {
					t.Errorf("listed: %+v", h)
				}
				ids = append(ids, h.ID)
			}
			return ids
		}
		if got := list(r.ada); !slices.Equal(got, []string{long.ID, minute.ID, week.ID}) {
			t.Errorf("listed %v", got)
		}
		if got := list(r.ben); len(got) != 0 {
			t.Errorf("ben is told of %v", got)
		}
		some, err := s.Shares(ctx, r.ada, long.ID, 1)
		if err != nil || len(some) != 2 || some[0].ID != minute.ID {
			t.Errorf("the next page: %+v (%v)", some, err)
		}
		r.clock.Advance(time.Minute)
		r.closed("its time is over", minute.Token)
		wantCode(t, s.EndShare(ctx, r.ben, week.ID), problem.NotFound)
		r.opened(s.SharedContent, week.Token)
		if err := s.EndShare(ctx, r.ada, week.ID); err != nil {
			t.Fatal(err)
		}
		r.closed("ended", week.Token)
		wantCode(t, s.EndShare(ctx, r.ada, week.ID), problem.NotFound)
		if got := list(r.ada); !slices.Equal(got, []string{long.ID}) {
			t.Errorf("listed %v", got)
		}

		again, deleted := r.shared(one, 0), r.shared(other, 0)
		if err := s.DeleteImage(ctx, r.ada, other); err != nil {
			t.Fatal(err)
		}
		r.closed("the picture is deleted", deleted.Token)
		r.closed("the picture is deleted", long.Token)
		if got := list(r.ada); !slices.Equal(got, []string{again.ID}) {
			t.Errorf("listed %v", got)
		}
		if err := s.EndShares(ctx, r.ada); err != nil {
			t.Fatal(err)
		}
		r.closed("all were ended", again.Token)
		last := r.shared(one, 0)
		r.clock.Advance(g.ExpiresAt.Sub(r.clock.Now()))
		r.closed("the picture has expired", last.Token)
		if _, err := r.privacy.Purge(ctx, "shares"); err != nil || r.count(`SELECT count(*) FROM shares`) != 0 {
			t.Errorf("rows are left of what has ended (%v)", err)
		}
	})
}

func TestSharesAreBounded(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		image := r.made(r.ada).Images[0].ID
		r.change(func(tx *db.Tx) error {
			for n := range mostShares {
				_, err := tx.Exec(t.Context(), `INSERT INTO shares (id, owner, image_id, token_lookup, created_at, expires_at) VALUES (?, ?, ?, ?, 1, ?)`,
					fmt.Sprint("shr_", n), r.ada, image, fmt.Sprint(n), r.clock.Now().Add(time.Hour).UnixMilli())
				if err != nil {
					return err
				}
			}
			return nil
		})
		_, err := r.service.Share(t.Context(), r.ada, image, 0)
		wantCode(t, err, problem.Conflict)
		r.clock.Advance(time.Hour)
		r.shared(image, 0)
	})
}

// Shares go with their pictures, whatever ends these, and count no more. Others stay.
func TestSharesGoWithTheirPictures(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx, s := t.Context(), r.service
		two, alone := r.made(r.ada, func(q *Request) { q.N = 2 }), r.made(r.ada)
		past := r.made(r.ada)
		ofBen := r.made(r.ben).Images[0].ID
		for _, image := range []string{two.Images[0].ID, two.Images[0].ID, two.Images[1].ID, alone.Images[0].ID, past.Images[0].ID} {
			r.shared(image, 0)
		}
		if _, err := s.Share(ctx, r.ben, ofBen, 0); err != nil {
			t.Fatal(err)
		}
		left := func(what string, ada int) {
			t.Helper()
			if n, ben := r.count(`SELECT count(*) FROM shares WHERE owner = ?`, r.ada), r.count(`SELECT count(*) FROM shares WHERE owner = ?`, r.ben); n != ada || ben != 1 {
				t.Errorf("%s: %d of ada's are left, want %d; %d of ben's", what, n, ada, ben)
			}
		}
		left("all", 5)
		if err := s.DeleteImage(ctx, r.ada, two.Images[0].ID); err != nil {
			t.Fatal(err)
		}
		left("an image", 3)
		if err := s.Delete(ctx, r.ada, alone.ID); err != nil {
			t.Fatal(err)
		}
		left("a generation", 2)
		r.change(func(tx *db.Tx) error {
			_, err := s.RemoveGenerations(ctx, tx, []string{past.ID}, "expired")
			return err
		})
		left("by retention", 1)
	})
}

func TestPromise_G6_SharesPauseAndEnd(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		image := r.made(r.ada).Images[0].ID
		h := r.shared(image, 0)
		pauses(t, r, func() error {
			_, err := r.service.Share(t.Context(), r.ada, image, 0)
			return err
		}, func() error {
			_, err := r.service.Shared(t.Context(), h.Token)
			c, other := r.service.SharedContent(t.Context(), h.Token)
			if err != other { //nolint:errorlint // page and picture say the same
				t.Errorf("the page: %v, the picture: %v", err, other)
			}
			if other == nil {
				other = c.Close()
			}
			return other
		})
	})
}
