package objects_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/objects"
)

// below names all that is in a folder, with each mode.
func below(t *testing.T, folder string) map[string]fs.FileMode {
	t.Helper()
	all := make(map[string]fs.FileMode)
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, path)
		all[name] = info.Mode().Perm()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDirectoryIsForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "made", "here")
	s := openDirectory(t, folder)
	put(t, s, key, []byte("x"))
	for name, mode := range below(t, folder) {
		want := fs.FileMode(0o700)
		if strings.HasSuffix(name, ".bin") {
			want = 0o600
		}
		if mode != want {
			t.Errorf("%s has mode %o, want %o", name, mode, want)
		}
	}
}

func TestDirectoryDeleteLeavesNoFolders(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	s := openDirectory(t, folder)
	put(t, s, key, []byte("x"))
	put(t, s, "images/sub_b/g/1/0.bin", []byte("x"))
	if err := os.MkdirAll(filepath.Join(folder, "images/sub_c/g/1"), 0o700); err != nil { // an interrupted Delete
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), key, "images/sub_c/g/1/0.bin"); err != nil {
		t.Fatal(err)
	}
	for name := range below(t, folder) {
		if strings.Contains(name, "sub_7k3") || strings.Contains(name, "sub_c") {
			t.Errorf("%s is still there", name)
		}
	}
	if get(t, s, "images/sub_b/g/1/0.bin") == nil {
		t.Error("somebody else's object is gone")
	}
}

func TestDirectorySweepsOldDrafts(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]func(t *testing.T, folder string, s *objects.Directory) objects.Store{
		"at the opening": func(t *testing.T, folder string, _ *objects.Directory) objects.Store { return openDirectory(t, folder) },
		"at a Put an hour later": func(t *testing.T, _ string, s *objects.Directory) objects.Store {
			put(t, s, key, []byte("x"))
			s.AnHourLater()
			put(t, s, key, []byte("x"))
			return s
		},
		"at a Check an hour later": func(t *testing.T, _ string, s *objects.Directory) objects.Store {
			s.AnHourLater()
			checks(t, s)
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			first := openDirectory(t, folder)
			drafts := filepath.Join(folder, ".drafts")
			for name, age := range map[string]time.Duration{"old": 61 * time.Minute, "young": 30 * time.Minute} {
				path := filepath.Join(drafts, name)
				if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
				written := time.Now().Add(-age)
				if err := os.Chtimes(path, written, written); err != nil {
					t.Fatal(err)
				}
			}
			checks(t, first)
			if _, err := os.Stat(filepath.Join(drafts, "old")); err != nil {
				t.Errorf("it was swept before its time: %v", err)
			}
			s := after(t, folder, first)
			if _, err := os.Stat(filepath.Join(drafts, "old")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the old one: %v", err)
			}
			if _, err := os.Stat(filepath.Join(drafts, "young")); err != nil {
				t.Errorf("the young one, which may be being written: %v", err)
			}
			for _, got := range keysOf(t, s, "") {
				if got != key {
					t.Errorf("a draft is listed: %q", got)
				}
			}
		})
	}
}

func checks(t *testing.T, s objects.Store) {
	t.Helper()
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDirectoryFailedPutLeavesNoDraft(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	s := openDirectory(t, folder)
	data := noise(100_000)
	tells(t, s.Put(t.Context(), key, &broken{Reader: bytes.NewReader(data), readings: 1}, 100_000), errBroken)
	if got := below(t, folder); len(got) != 2 { // itself and the folder of drafts
		t.Errorf("there is %v", got)
	}
}

func TestDirectoryDoesNotFollowLinksOut(t *testing.T) {
	t.Parallel()
	folder, outside := t.TempDir(), t.TempDir()
	s := openDirectory(t, folder)
	if err := os.WriteFile(filepath.Join(outside, "0.bin"), []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(folder, "images")); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Get(t.Context(), "images/0.bin")
	silent(t, err)
	silent(t, s.Put(t.Context(), "images/1.bin", strings.NewReader("x"), 1))
	silent(t, s.Delete(t.Context(), "images/0.bin"))
	if got := below(t, outside); len(got) != 2 {
		t.Errorf("outside there is %v", got)
	}
	if got := keysOf(t, s, ""); len(got) != 0 {
		t.Errorf("listed: %q", got)
	}
}

// A Delete removes folders that a Put has just made; both must succeed.
func TestDirectoryPutAgainstDelete(t *testing.T) {
	t.Parallel()
	s := openDirectory(t, t.TempDir())
	var wait sync.WaitGroup
	for _, name := range []string{"0.bin", "1.bin", "2.bin"} {
		wait.Go(func() {
			key := "images/sub_a/g/1/" + name
			for range 100 {
				if err := s.Put(t.Context(), key, strings.NewReader("x"), 1); err != nil {
					t.Errorf("put: %v", err)
				}
				if err := s.Delete(t.Context(), key); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
		})
	}
	wait.Wait()
	if got := keysOf(t, s, ""); !slices.Equal(got, nil) {
		t.Errorf("left: %q", got)
	}
}

func TestDirectoryThatIsGone(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "images")
	s := openDirectory(t, folder)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	silent(t, s.Check(t.Context()))
	silent(t, s.Put(t.Context(), key, strings.NewReader("x"), 1))
}

func TestDirectoryThatOthersMayWriteToIsRefused(t *testing.T) {
	t.Parallel()
	for mode, fine := range map[fs.FileMode]bool{0o700: true, 0o755: true, 0o720: false, 0o702: false, 0o777: false} {
		folder := t.TempDir()
		if err := os.Chmod(folder, mode); err != nil { //nolint:gosec // that is the test
			t.Fatal(err)
		}
		d, err := objects.OpenDirectory(folder)
		if fine {
			if err != nil {
				t.Errorf("%o: %v", mode, err)
				continue
			}
			_ = d.Close()
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("%o: %v", mode, err)
		}
		if got := below(t, folder); len(got) != 1 {
			t.Errorf("%o: refused, and yet written to: %v", mode, got)
		}
	}
}

// asked counts how often a context is asked whether it has ended, which List
// does for each folder that it reads.
type asked struct {
	context.Context
	times atomic.Int32
}

func (a *asked) Err() error {
	a.times.Add(1)
	return a.Context.Err()
}

func TestDirectoryListVisitsNoNeighbours(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	s := openDirectory(t, folder)
	for n := range 50 {
		for _, path := range []string{"images/sub_a/gen_%02d/1", "images/sub_%02d/g/1", "a%02d/b/c"} {
			if err := os.MkdirAll(filepath.Join(folder, fmt.Sprintf(path, n)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := []string{"images/sub_a/gen_x/1/0.bin", "images/sub_a/gen_x/1/1.bin", "images/sub_a/gen_x/2/0.bin"}
	for _, k := range want {
		put(t, s, k, []byte("x"))
	}
	for prefix, folders := range map[string]int32{"images/sub_a/gen_x/": 3, "images/sub_a/gen_x/1/": 1, "images/sub_a/gen_x/1/1": 1} {
		ctx := &asked{Context: t.Context()}
		got, err := s.List(ctx, prefix, "", 10)
		if err != nil {
			t.Fatal(err)
		}
		if n := ctx.times.Load(); n != folders {
			t.Errorf("%q: %d folders read, want %d", prefix, n, folders)
		}
		var keys []string
		for _, one := range got {
			keys = append(keys, one.Key)
		}
		below := slices.DeleteFunc(slices.Clone(want), func(k string) bool { return !strings.HasPrefix(k, prefix) })
		if !slices.Equal(keys, below) {
			t.Errorf("%q: %q, want %q", prefix, keys, below)
		}
	}
	if got, err := s.List(t.Context(), "images/sub_a/gen_x/", want[0], 1); err != nil || len(got) != 1 || got[0].Key != want[1] {
		t.Errorf("after the first: %v, %v", got, err)
	}
}

func TestDirectoryListOfOddPrefixes(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	s := openDirectory(t, folder)
	put(t, s, key, []byte("x"))
	if err := os.Symlink("images", filepath.Join(folder, "linked")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, ".drafts", "a.bin"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"linked/", ".drafts/", "images//", "images/./", "./images/", "none/here/", key + "/", key + "/a/"} {
		if got := keysOf(t, s, prefix); len(got) != 0 {
			t.Errorf("%q: %q", prefix, got)
		}
	}
}
