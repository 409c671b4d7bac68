package privacy

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// A Stack is a kind of databases and object store that a test runs on. The key store is
// on the same kind of database.
type Stack struct {
	Dialect       db.Dialect
	S3, Versioned bool
}

// Stacks are all that there are.
var Stacks = map[string]Stack{
	"sqlite, directory":      {Dialect: db.SQLite},
	"postgres, s3":           {Dialect: db.Postgres, S3: true},
	"postgres, s3 versioned": {Dialect: db.Postgres, S3: true, Versioned: true},
}

// A Place is where the parts of a test are: another process finds them by it.
type Place struct {
	Stack
	Database, Keys, Roots string
	Redis                 string            // empty: it is away
	Objects               string            // a folder; or
	Bucket                *testenv.S3Bucket //
	Now                   time.Time
}

// NewPlace makes one that nobody else uses, below a folder.
func NewPlace(t testing.TB, s Stack, dir string, now time.Time) Place {
	t.Helper()
	at := Place{Stack: s, Roots: filepath.Join(dir, "roots"), Objects: filepath.Join(dir, "objects"), Now: now}
	at.Database, at.Keys = testenv.Migrated(t, s.Dialect, db.Main()), testenv.Migrated(t, s.Dialect, vault.Migrations())
	_, err := vault.CreateRoots(at.Roots)
	must(t, err)
	text, err := os.ReadFile(at.Roots)
	must(t, err)
	text = regexp.MustCompile(`created: .*`).ReplaceAll(text, []byte("created: "+now.Format(time.RFC3339))) // as old as the clock says
	must(t, os.WriteFile(at.Roots, text, 0o600))

	if s.S3 {
		b := testenv.S3(t)
		at.Bucket = &b
		if s.Versioned {
			must(t, at.s3(t).MakeBucket(t.Context(), b.Bucket, minio.MakeBucketOptions{}))
			must(t, at.s3(t).EnableVersioning(t.Context(), b.Bucket))
		}
	}
	return at
}

// Parts are what is at a place.
type Parts struct {
	DB, Keys *db.DB
	Vault    *vault.Vault
	Store    objects.Store
	Clock    *clock.Clock
	closers  []func()
}

// Close closes them, and before them what OnClose was told of.
func (p *Parts) Close() {
	for _, c := range slices.Backward(p.closers) {
		c()
	}
}

// OnClose has Close call f.
func (p *Parts) OnClose(f func()) { p.closers = append(p.closers, f) }

// Open opens the parts as a new process does, by a clock or one that stands still. Close
// them, also those that came before an error.
func (at Place) Open(ctx context.Context, c *clock.Clock, o db.Options) (p *Parts, err error) {
	if c == nil {
		c = clock.Manual(at.Now)
	}
	p = &Parts{Clock: c}
	open := func(address string) (d *db.DB) {
		if err == nil {
			if d, err = db.Open(ctx, address, o); err == nil {
				p.OnClose(func() { _ = d.Close() })
			}
		}
		return d
	}
	p.DB, p.Keys = open(at.Database), open(at.Keys)
	if err != nil {
		return p, err
	}
	roots, err := vault.ReadRoots(at.Roots)
	if err != nil {
		return p, err
	}
	if p.Vault, err = vault.Open(ctx, p.Keys, roots, p.Clock); err != nil {
		return p, err
	}
	if at.Bucket != nil {
		p.Store, err = objects.OpenS3(ctx, objects.S3Options{Endpoint: at.Bucket.Endpoint, Bucket: at.Bucket.Bucket,
			AccessKey: at.Bucket.AccessKey, SecretKey: at.Bucket.SecretKey})
		return p, err
	}
	d, err := objects.OpenDirectory(at.Objects)
	if err != nil {
		return p, err
	}
	p.OnClose(func() { _ = d.Close() })
	p.Store = d
	return p, nil
}

func (at Place) s3(t testing.TB) *minio.Client {
	t.Helper()
	c, err := minio.New(at.Bucket.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(at.Bucket.AccessKey, at.Bucket.SecretKey, "")})
	must(t, err)
	return c
}

// Stored are all keys of a store below a prefix, every version and marker of them.
func (at Place) Stored(t testing.TB, store objects.Store, prefix string) (keys []string) {
	t.Helper()
	ctx := context.Background()
	if at.Bucket != nil {
		for o := range at.s3(t).ListObjectsIter(ctx, at.Bucket.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true, WithVersions: at.Versioned}) {
			if o.Err != nil && minio.ToErrorResponse(o.Err).Code != minio.NoSuchBucket {
				t.Fatal(o.Err)
			}
			if o.Err == nil {
				keys = append(keys, o.Key)
			}
		}
		return keys
	}
	page, err := store.List(ctx, prefix, "", 100_000)
	must(t, err)
	for _, o := range page {
		keys = append(keys, o.Key)
	}
	return keys
}

// Unfinished counts the uploads to a key that have not ended.
func (at Place) Unfinished(t testing.TB, key string) (n int) {
	t.Helper()
	if at.Bucket == nil {
		return 0
	}
	for u := range at.s3(t).ListIncompleteUploads(t.Context(), at.Bucket.Bucket, key, true) {
		must(t, u.Err)
		n++
	}
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
