package picture

import "encoding/binary"

// cleanWebP finds the orientation and whether the file is whole. A WebP is
// always encoded anew, which leaves its metadata behind.
func cleanWebP(raw []byte) ([]byte, orientation, error) {
	if int64(binary.LittleEndian.Uint32(raw[4:]))+8 > int64(len(raw)) {
		return nil, upright, ErrTruncated
	}
	turn := upright
	for rest := raw[12:]; len(rest) >= 8; {
		n := int(binary.LittleEndian.Uint32(rest[4:]))
		if n > len(rest)-8 {
			break
		}
		if string(rest[:4]) == "EXIF" {
			turn = orientationOf(rest[8 : 8+n])
		}
		rest = rest[min(8+n+n&1, len(rest)):]
	}
	return raw, turn, nil
}
