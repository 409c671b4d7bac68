package account

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"zimage/internal/problem"
)

func TestRecoveryCodesAreForPeople(t *testing.T) {
	t.Parallel()
	shape := regexp.MustCompile(`^([0-9a-hjkmnp-tv-z]{4}-){3}[0-9a-hjkmnp-tv-z]{4}$`) // 16 of 32 letters: 80 bits
	seen := map[string]bool{}
	for range 1000 {
		plain := newRecoveryCode()
		code := grouped(plain)
		if !shape.MatchString(code) || seen[code] {
			t.Fatalf("%q", code)
		}
		seen[code] = true
		for _, typed := range []string{
			code, plain, strings.ToUpper(code), " " + strings.ReplaceAll(code, "-", " ") + " ", strings.ReplaceAll(code, "-", "--"),
			strings.NewReplacer("0", "o", "1", "l").Replace(code), strings.NewReplacer("0", "O", "1", "I").Replace(code),
		} {
			if got, ok := readRecoveryCode(typed); !ok || got != plain {
				t.Fatalf("%q is read as %q", typed, got)
			}
		}
	}
	for _, bad := range []string{"", "-", "123456", "0000-0000-0000-000", "0000-0000-0000-00000", "uuuu-uuuu-uuuu-uuuu", "0000-0000-0000-000é", strings.Repeat("-", 64) + "0000000000000000"} {
		if got, ok := readRecoveryCode(bad); ok {
			t.Errorf("%q is read as %q", bad, got)
		}
	}
}

func TestPromise_A4_Attack_ARecoveryCodeIsReused(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		_, codes := h.enrolled(&p)
		h.opens("once", ann, codes[0], ByPasswordRecovery)
		h.opensNot("twice", ann, codes[0])
		h.opens("as somebody types it", ann, strings.ToUpper(strings.ReplaceAll(codes[1], "-", " ")), ByPasswordRecovery)
		h.opensNot("and again", ann, codes[1])
		if told := h.toldFactors(ann); len(told) != 3 || told[0] != "A recovery code was used. 8 are left." || told[1] != "A recovery code was used. 9 are left." {
			t.Errorf("told %q", told)
		}

		there := h.process()
		const n = 32
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { _, errs[i] = checkWith([]*Service{h.Service, there}[i%2], ann, codes[2]) })
		}
		wg.Wait()
		got := 0
		for _, err := range errs {
			switch {
			case err == nil:
				got++
			case !errors.Is(err, errWrongCode):
				t.Error(err)
			}
		}
		if got != 1 {
			t.Errorf("one code opened %d sessions", got)
		}
		if state, err := h.factors(ctx, h.db, ann); err != nil || state.CodesLeft != recoveryCodes-3 {
			t.Errorf("%+v, %v", state, err)
		}
		// All used: a sign-in does not offer it any more.
		for _, code := range codes[3:] {
			h.opens("the rest", ann, code, ByPasswordRecovery)
		}
		if need := h.stillNeeds(ann); need == nil || need.Recovery || !need.TOTP {
			t.Errorf("a sign-in needs %+v", need)
		}
	})
}

func TestNewRecoveryCodesVoidTheOld(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		_, err := h.NewRecoveryCodes(ctx, p)
		wantCode(t, "for no factor", err, problem.Conflict)
		_, old := h.enrolled(&p)
		h.opens("an old one", ann, old[0], ByPasswordRecovery)
		codes, err := h.NewRecoveryCodes(ctx, p)
		if err != nil || len(codes) != recoveryCodes {
			t.Fatalf("%d codes, %v", len(codes), err)
		}
		for _, code := range old {
			if slices.Contains(codes, code) {
				t.Error("an old code came again")
			}
			h.opensNot("an old one", ann, code)
		}
		h.opens("a new one", ann, codes[9], ByPasswordRecovery)
		if n := h.rowsOf("recovery_codes", ann); n != recoveryCodes {
			t.Errorf("%d rows", n)
		}
		if told := h.toldFactors(ann); len(told) != 4 || !strings.Contains(told[3], "The old ones do not work") {
			t.Errorf("told %q", told)
		}
	})
}
