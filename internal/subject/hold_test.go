package subject_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

// evidence adds a person with one row in every table that can be held, and
// returns the rows' ids by table.
func evidence(t *testing.T, d *db.DB, owner string) map[string]string {
	t.Helper()
	add(t, d, owner)
	ids := map[string]string{"users": owner, "objections": subject.ObjectionRecord(owner, subject.Statistics)}
	for table, values := range map[string]string{
		"users":          `(id, email_lookup, email, password, created_at) VALUES (?, '` + owner + `', 'x', 'x', 1)`,
		"objections":     `(subject, purpose, at) VALUES (?, 'statistics', 1)`,
		"consents":       `(subject, id, purpose, granted, policy_version, at) VALUES (?, 'con_` + owner + `', 'training', 1, 'v1', 1)`,
		"mails":          `(subject, id, template, created_at) VALUES (?, 'mail_` + owner + `', 'x', 1)`,
		"ledger_details": `(subject, entry_id, hidden, details) VALUES (?, 'led_` + owner + `', 0, 'x')`,
		"generations": `(owner, id, job_id, model, seed, status, error_code, attempts, created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
			VALUES (?, 'gen_` + owner + `', '', 'm', 1, 'succeeded', '', 1, 1, 1, 1, 1, 0, '', 0)`,
		"images": `(owner, id, generation_id, n, attempt, width, height, format, bytes, seed, created_at, expires_at, removed_at, removed_reason)
			VALUES (?, 'img_` + owner + `', 'gen_` + owner + `', 0, 1, 1, 1, 'png', 1, 1, 1, 1, 0, '')`,
	} {
		if _, err := d.Exec(context.Background(), `INSERT INTO `+table+` `+values, owner); err != nil {
			t.Fatalf("%s: %v", table, err)
		}
		if ids[table] == "" {
			_, rest, _ := strings.Cut(values, "'")
			ids[table], _, _ = strings.Cut(rest, "'")
		}
	}
	return ids
}

func hold(d *db.DB, owner, table, record string) (id string, err error) {
	err = d.Tx(context.Background(), func(tx *db.Tx) (err error) {
		id, err = subject.Hold(context.Background(), tx, owner, table, record, "case 7", now)
		return err
	})
	return id, err
}

func release(t *testing.T, d *db.DB, id string) {
	t.Helper()
	change(t, d, func(ctx context.Context, tx *db.Tx) error { return subject.Release(ctx, tx, id, now) })
}

func ask(d *db.DB, table, record string) error {
	return d.Tx(context.Background(), func(tx *db.Tx) error { return subject.AskHeld(context.Background(), tx, table, record) })
}

func TestHoldsCoverOneAnother(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		image := evidence(t, d, "sub_a")["images"]
		first, err := hold(d, "sub_a", "images", image)
		expect(t, "held", err, ok)
		second, err := hold(d, "sub_a", "images", image)
		expect(t, "held again", err, ok)
		held := func(table string, ids ...string) (yes bool) {
			t.Helper()
			change(t, d, func(ctx context.Context, tx *db.Tx) (err error) {
				yes, err = subject.Held(ctx, tx, table, ids...)
				return err
			})
			return yes
		}
		for _, id := range []string{first, second} {
			if !held("images", image, "img_2") {
				t.Error("a hold does not hold")
			}
			if held("images", "img_2") || held("generations", image) || held("images") {
				t.Error("a hold holds more than its record")
			}
			change(t, d, func(ctx context.Context, tx *db.Tx) error {
				free, err := subject.Free(ctx, tx, "images", []string{"img_2", image, "img_0"})
				if err != nil || strings.Join(free, " ") != "img_2 img_0" {
					t.Errorf("free %v (%v)", free, err)
				}
				return nil
			})
			release(t, d, id)
			expect(t, "released twice", d.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, id, now) }), problem.NotFound)
		}
		if held("images", image) {
			t.Error("released, and still held")
		}
	})
}

func TestHoldsAreForRecords(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		mine, others := evidence(t, d, "sub_a"), evidence(t, d, "sub_b")
		for _, table := range []string{"sessions", "mailed_links", "passkeys", "passkey_challenges", "recovery_codes", "api_keys", "throttles", "signups", "nonsense", ""} {
			_, err := hold(d, "sub_a", table, "x")
			expect(t, table, err, problem.InvalidRequest)
			var p *problem.Error
			if errors.As(err, &p) && (len(p.Fields) != 1 || !strings.Contains(p.Fields[0].Message, "evidence")) {
				t.Errorf("%s: %+v does not say why", table, p.Fields)
			}
		}
		for _, table := range subject.Records() {
			id, err := hold(d, "sub_a", table, mine[table])
			expect(t, table, err, ok)
			expect(t, table+" held", ask(d, table, mine[table]), problem.Conflict)
			expect(t, table+", another", ask(d, table, others[table]), ok)
			release(t, d, id)
			expect(t, table+" released", ask(d, table, mine[table]), ok)

			// What is not there, or somebody else's, cannot be held: a slip of the
			// pen must not look like a hold.
			for what, record := range map[string]string{"unknown": "x_1", "somebody else's": others[table]} {
				_, err := hold(d, "sub_a", table, record)
				expect(t, table+", "+what, err, problem.NotFound)
			}
		}
		for _, table := range []string{"generations", "images"} {
			if _, err := d.Exec(ctx, `UPDATE `+table+` SET removed_at = 1`); err != nil {
				t.Fatal(err)
			}
			_, err := hold(d, "sub_a", table, mine[table])
			expect(t, "a tombstone in "+table, err, problem.DataRemoved)
		}
		var holds int
		if err := d.Get(ctx, &holds, `SELECT count(*) FROM holds WHERE released_at IS NULL`); err != nil || holds != 0 {
			t.Errorf("%d holds of what was refused (%v)", holds, err)
		}
	})
}

func withdraw(d *db.DB) error {
	return d.Tx(context.Background(), func(tx *db.Tx) error {
		_, err := subject.WithdrawObjection(context.Background(), tx, "sub_a", subject.Statistics)
		return err
	})
}

func TestAnObjectionThatIsHeldCannotBeWithdrawn(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		id, err := hold(d, "sub_a", "objections", evidence(t, d, "sub_a")["objections"])
		expect(t, "an objection", err, ok)
		expect(t, "withdrawn", withdraw(d), problem.Conflict)
		expect(t, "it stands", subject.May(context.Background(), d, "sub_a", subject.Statistics), problem.Forbidden)
		release(t, d, id)
		expect(t, "released", withdraw(d), ok)
	})
}

// A hold and a deletion at the same time: whichever is first has its way, and the
// other one says so.
func TestAHoldAndADeletionDoNotPassOneAnother(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		ids := evidence(t, d, "sub_a")
		for _, table := range subject.Records() {
			where, key := "id = ?", ids[table]
			if table == "objections" || table == "ledger_details" { // these have no id of their own
				where, key = "subject = ?", "sub_a"
			}
			remove := func(tx *db.Tx) error {
				if err := subject.AskHeld(ctx, tx, table, ids[table]); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE `+where, key)
				return err
			}
			var id string
			first, second := testenv.Overtaken(t, d,
				func(tx *db.Tx) (err error) {
					id, err = subject.Hold(ctx, tx, "sub_a", table, ids[table], "case 7", now)
					return err
				},
				func() error { return d.Tx(ctx, remove) })
			expect(t, table+": the hold", first, ok)
			expect(t, table+": deleting meanwhile", second, problem.Conflict)
			release(t, d, id)

			first, second = testenv.Overtaken(t, d, remove, func() error { _, err := hold(d, "sub_a", table, ids[table]); return err })
			expect(t, table+": the deletion", first, ok)
			expect(t, table+": a hold meanwhile", second, problem.NotFound)
		}
	})
}

func TestAHoldStopsAnObjectionThatIsBeingWithdrawn(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		record := evidence(t, d, "sub_a")["objections"]
		first, second := testenv.Overtaken(t, d,
			func(tx *db.Tx) error {
				_, err := subject.Hold(ctx, tx, "sub_a", "objections", record, "case 7", now)
				return err
			},
			func() error { return withdraw(d) })
		expect(t, "the hold", first, ok)
		expect(t, "withdrawing meanwhile", second, problem.Conflict)
		expect(t, "it stands", subject.May(ctx, d, "sub_a", subject.Statistics), problem.Forbidden)
	})
}

// An end of work that asks Enter learns of a restriction that is on its way; May
// would not.
func TestEnterWaitsForARestriction(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		add(t, d, "sub_a")
		first, second := testenv.Overtaken(t, d,
			func(tx *db.Tx) error { return subject.Restrict(ctx, tx, "sub_a", now) },
			func() error {
				return d.Tx(ctx, func(tx *db.Tx) error { return subject.Enter(ctx, tx, "sub_a", subject.Generate) })
			})
		expect(t, "the restriction", first, ok)
		expect(t, "entering meanwhile", second, problem.Forbidden)
	})
}
