//go:build unix

package vault

import (
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a file to whom another one belongs.
func keepOwner(f *os.File, like fs.FileInfo) error {
	if s, ok := like.Sys().(*syscall.Stat_t); ok {
		return f.Chown(int(s.Uid), int(s.Gid))
	}
	return nil
}
