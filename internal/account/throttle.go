package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
)

// A limit lets burst attempts through at once and then one each interval.
type limit struct {
	burst    int64
	interval time.Duration
}

var (
	// perAccount counts attempts at one address, whether it has an account or
	// not. A browser that was signed in to this account before has a count of its
	// own: an attacker can use up the address's, and never that.
	perAccount = limit{10, time.Minute}
	// perNetwork counts attempts of one IPv4 address, or of one IPv6 /64, which is
	// what one customer gets. Behind one address there may be many: it is never in
	// the way of a browser that this account knows.
	perNetwork = limit{30, 2 * time.Second}
	// perCode counts second factors behind a right password, and passwords behind
	// a mailed code. Six digits stand up to it: at 96 guesses a day with three
	// steps' codes right at any time, half of a chance takes years.
	perCode = limit{10, 15 * time.Minute}
	// perLetter counts mails of one kind to one mailbox that one network, one person
	// or one browser of the account has sent: who uses that up keeps nobody else's
	// letter away, and a browser of the account has no other count.
	perLetter = limit{5, 10 * time.Minute}
	// perMailbox counts what all strangers have sent there, so that nobody's mailbox
	// is filled by who knows it. Beyond it there is a reserve, of which one part of
	// the net gets two letters in half a day: who asks from many networks of one
	// provider does not use it up. Both have a count of the day too, or a patient
	// stranger would fill the mailbox all the same.
	perMailbox       = limit{10, 10 * time.Minute}
	perMailboxDay    = limit{40, 24 * time.Hour / 40}
	perReserve       = limit{20, 30 * time.Minute}
	perReserveDay    = limit{30, 24 * time.Hour / 30}
	perNeighbourhood = limit{2, 12 * time.Hour}
	// perEntry counts right passwords and passkeys, which are given back everywhere
	// else: who has an account must not have the machine hash for them all day. An
	// hour's worth is two seconds of one processor, and more than any person or
	// browser needs. Nobody can use it up for somebody else without the password,
	// and then not for the browsers that the account knows.
	perEntry = limit{60, time.Minute}
	// perNewDevice counts mails about new devices of one account. Those beyond
	// stand in the list of sessions alone.
	perNewDevice = limit{10, 24 * time.Hour / 10}
)

// A bucket is a limit on something; its key names that only by a hash or an id.
type bucket struct {
	key string
	limit
	soft bool // counted however full it is, and never in the way
}

func (s *Service) accountBucket(canonical string) bucket {
	return bucket{key: "account:" + s.vault.Lookup("throttle account", canonical), limit: perAccount}
}

// entryBucket is for a browser that the account knows, by its session, or for all
// others together, by the account.
func entryBucket(id string) bucket { return bucket{key: "entry:" + id, limit: perEntry} }

func newDeviceBucket(owner string) bucket {
	return bucket{key: "new-device:" + owner, limit: perNewDevice}
}

// An asker is who has a mail sent: a network and the part of the net around it, or
// a person, who is both. Behind a socket nobody knows, and all of those together
// would be one. A browser of the account that it goes to is known.
type asker struct {
	who, around string
	known       bool
}

// asker is the client as who has a mail sent to an owner's address, who may be
// nobody. A browser that the owner was signed in with counts by itself: no stranger
// keeps them from their own letters.
func (s *Service) asker(ctx context.Context, c Client, owner string) (asker, error) {
	device, err := s.device(ctx, c.Device)
	switch {
	case err != nil:
		return asker{}, err
	case owner != "" && device.Owner == owner:
		return asker{who: device.ID, known: true}, nil
	case !c.Addr.IsValid():
		return asker{}, nil
	}
	return asker{who: Network(c.Addr).String(), around: Neighbourhood(c.Addr).String()}, nil
}

// takeLetter counts one more mail of a kind to a mailbox, RateLimited when it is
// one too many.
func (s *Service) takeLetter(ctx context.Context, t mail.Template, mailbox string, a asker) error {
	all := string(t) + ":" + s.vault.Lookup("throttle account", mailbox)
	of := func(who string) string { return all + ":" + s.vault.Lookup("throttle network", who) }
	var wait time.Duration
	err := s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		now := s.clock.Millis()
		if a.who != "" {
			if wait, err = takeOne(ctx, tx, bucket{key: of(a.who), limit: perLetter}, now); err != nil || wait > 0 {
				return err
			}
		}
		if a.known {
			return nil
		}
		full, err := takeAll(ctx, tx, now, bucket{key: all, limit: perMailbox}, bucket{key: all + ":day", limit: perMailboxDay})
		if err != nil || full == 0 {
			return err
		}
		if a.around != "" {
			if wait, err = takeOne(ctx, tx, bucket{key: of("around " + a.around), limit: perNeighbourhood}, now); err != nil || wait > 0 {
				return err
			}
		}
		wait, err = takeAll(ctx, tx, now, bucket{key: all + ":reserve", limit: perReserve}, bucket{key: all + ":reserve:day", limit: perReserveDay})
		return err
	})
	if err != nil {
		return away(fmt.Errorf("count a mail: %w", err))
	}
	if wait > 0 {
		return tooMany(wait)
	}
	return nil
}

// mailbox is where the mail of a canonical address most likely ends, to count by:
// many servers deliver name+anything to name (RFC 5233), and Gmail, by either of its
// domains, n.a.m.e too, so that one mailbox has any number of addresses.
func mailbox(canonical string) string {
	at := strings.LastIndexByte(canonical, '@')
	local, domain := canonical[:at], canonical[at+1:]
	if plus := strings.IndexByte(local, '+'); plus > 0 {
		local = local[:plus]
	}
	if domain == "gmail.com" || domain == "googlemail.com" {
		local, domain = strings.ReplaceAll(local, ".", ""), "gmail.com"
	}
	return local + "@" + domain
}

// askerBucket counts the mails that one person has sent to addresses that are not
// known to be theirs.
func askerBucket(owner string) bucket { return bucket{key: "asker:" + owner, limit: perLetter} }

func deviceBucket(session string) bucket { return bucket{key: "device:" + session, limit: perAccount} }

func codeBucket(id string) bucket { return bucket{key: "code:" + id, limit: perCode} }

// Network is what attempts of strangers are counted by: an IPv4 address, or the
// /64 that an IPv6 client moves in freely. It is not valid when the address is not.
func Network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits)
	return p
}

// Neighbourhood is about what one provider has: an IPv4 /16 or an IPv6 /32.
func Neighbourhood(addr netip.Addr) netip.Prefix {
	network := Network(addr)
	p, _ := network.Addr().Prefix(network.Bits() / 2)
	return p
}

// networkBucket is none for a client whose address is not known, such as one
// behind a socket: all of those together would lock each other out.
func (s *Service) networkBucket(addr netip.Addr) []bucket {
	network := Network(addr)
	if !network.IsValid() {
		return nil
	}
	return []bucket{{key: "network:" + s.vault.Lookup("throttle network", network.String()), limit: perNetwork}}
}

// knownBuckets are for a browser that this account knows: its own count comes
// first and alone can be full. Its network is counted as long as there is room,
// and never refuses it.
func (s *Service) knownBuckets(c Client, session string) []bucket {
	buckets := []bucket{deviceBucket(session)}
	for _, b := range s.networkBucket(c.Addr) {
		b.soft = true
		buckets = append(buckets, b)
	}
	return buckets
}

// take counts an attempt in every bucket, RateLimited when one is full. It comes
// before whatever the attempt costs, in a transaction of its own: what is full
// for one process is for all. A refused attempt counts in no bucket behind the
// full one. It returns what was counted, for giveBack: a soft bucket that is full
// counts nothing, since others would wait for it.
func (s *Service) take(ctx context.Context, buckets ...bucket) (taken []bucket, err error) {
	var wait time.Duration
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		wait, taken = 0, nil
		for _, b := range buckets {
			full, err := takeOne(ctx, tx, b, s.clock.Millis())
			switch {
			case err != nil:
				return err
			case full == 0:
				taken = append(taken, b)
			case !b.soft:
				wait = full
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, away(fmt.Errorf("count an attempt: %w", err))
	}
	if wait > 0 {
		return nil, tooMany(wait)
	}
	return taken, nil
}

// takeIn is take in the caller's transaction, for what is known only there.
func (s *Service) takeIn(ctx context.Context, tx *db.Tx, b bucket) error {
	wait, err := takeOne(ctx, tx, b, s.clock.Millis())
	if err == nil && wait > 0 {
		err = tooMany(wait)
	}
	return err
}

// full returns how long a bucket is full, 0 for not, and counts nothing.
func (s *Service) full(ctx context.Context, b bucket) (time.Duration, error) {
	var arrival int64
	err := s.db.Get(ctx, &arrival, `SELECT arrival FROM throttles WHERE bucket = ?`, b.key)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, away(fmt.Errorf("look at a count: %w", err))
	}
	return time.Duration(max(arrival-b.latest(s.clock.Millis()), 0)) * time.Millisecond, nil
}

func tooMany(wait time.Duration) error {
	return problem.New(problem.RateLimited, "Too many attempts. Try again later.").After(wait)
}

// latest is how far ahead the arrival may lie for one more to be let in.
func (b bucket) latest(now int64) int64 { return now + (b.burst-1)*b.interval.Milliseconds() }

// takeOne is GCRA: arrival is when the next attempt would be on time if they
// came one each interval, and it may lie at most burst intervals ahead. One
// statement tests and counts, so that two at once never pass as one. It returns
// how long to wait, 0 for counted.
func takeOne(ctx context.Context, tx *db.Tx, b bucket, now int64) (time.Duration, error) {
	step := b.interval.Milliseconds()
	latest := b.latest(now)
	var arrival int64
	err := tx.Get(ctx, &arrival, `INSERT INTO throttles (bucket, arrival) VALUES (?, ?)
		ON CONFLICT (bucket) DO UPDATE SET arrival = `+db.Greatest(tx)+`(throttles.arrival, ?) + ?
			WHERE throttles.arrival <= ?
		RETURNING arrival`,
		b.key, now+step, now, step, latest)
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	err = tx.Get(ctx, &arrival, `SELECT arrival FROM throttles WHERE bucket = ?`, b.key)
	if err != nil && !errors.Is(err, sql.ErrNoRows) { // none: pruned in between, it is free now
		return 0, err
	}
	return time.Duration(max(arrival-latest, 1)) * time.Millisecond, nil
}

// takeAll counts in every bucket up to the first that is full, as take does in a
// transaction of its own.
func takeAll(ctx context.Context, tx *db.Tx, now int64, buckets ...bucket) (wait time.Duration, err error) {
	for _, b := range buckets {
		if wait, err = takeOne(ctx, tx, b, now); err != nil || wait > 0 {
			break
		}
	}
	return wait, err
}

// giveBack takes a successful attempt out of the count again: whoever may come
// in is never slowed down by coming often. It gives back no more than was taken,
// so that an attacker's own account does not wash away the count of a network.
func giveBack(ctx context.Context, tx *db.Tx, taken []bucket) error {
	for _, b := range taken { // in the order of take: two transactions must not wait for each other
		if _, err := tx.Exec(ctx, `UPDATE throttles SET arrival = arrival - ? WHERE bucket = ?`, b.interval.Milliseconds(), b.key); err != nil {
			return fmt.Errorf("give back an attempt: %w", err)
		}
	}
	return nil
}
