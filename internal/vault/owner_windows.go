package vault

import (
	"io/fs"
	"os"
)

// keepOwner has nothing to do: a file belongs to whom its folder says.
func keepOwner(*os.File, fs.FileInfo) error { return nil }
