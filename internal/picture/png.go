package picture

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	pngSignature = "\x89PNG\r\n\x1a\n"
	maxProfile   = 1 << 20 // bytes of a compressed colour profile; real ones take up to 600 KB
)

// cleanPNG copies what is needed to decode a PNG and show its colours right,
// and nothing else: no text, time, EXIF, animation or private chunk, and nothing
// after IEND. The checksum of every chunk copied is verified.
func cleanPNG(raw []byte) ([]byte, orientation, error) {
	clean := make([]byte, 0, len(raw))
	clean = append(clean, pngSignature...)
	turn := upright
	seen := map[string]bool{}
	previous := ""
	for rest := raw[len(pngSignature):]; ; {
		if len(rest) < 12 {
			return nil, upright, ErrTruncated
		}
		n := int(binary.BigEndian.Uint32(rest))
		if n > len(rest)-12 {
			return nil, upright, ErrTruncated
		}
		kind, body, sum := string(rest[4:8]), rest[8:8+n], binary.BigEndian.Uint32(rest[8+n:])
		if keepPNG(kind, n, previous, seen) {
			if crc32.ChecksumIEEE(rest[4:8+n]) != sum {
				return nil, upright, ErrNotImage
			}
			if kind == "iCCP" {
				body = nameless(body)
			}
			clean = appendPNG(clean, kind, body)
			seen[kind] = true
		} else if kind == "eXIf" {
			turn = orientationOf(body)
		}
		if kind == "IEND" {
			return clean, turn, nil
		}
		previous, rest = kind, rest[12+n:]
	}
}

// keepPNG also drops the second of a kind, what comes after the pixels, and
// pixel chunks after others: decoders ignore them, so they would be a place to
// hide things.
func keepPNG(kind string, size int, previous string, seen map[string]bool) bool {
	switch kind {
	case "IHDR", "PLTE", "tRNS":
		return true // the decoder checks their number, order and size
	case "IEND":
		return size == 0
	case "IDAT":
		return size > 0 && (previous == "IDAT" || !seen["IDAT"])
	case "sRGB":
		return size == 1 && !seen[kind] && !seen["IDAT"]
	case "gAMA":
		return size == 4 && !seen[kind] && !seen["IDAT"]
	case "cHRM":
		return size == 32 && !seen[kind] && !seen["IDAT"]
	case "iCCP":
		return size <= maxProfile && !seen[kind] && !seen["IDAT"]
	}
	return false
}

// nameless gives a colour profile a name of ours: the name is free text.
func nameless(iccp []byte) []byte {
	for i, c := range iccp {
		if c == 0 {
			return append([]byte("icc"), iccp[i:]...)
		}
	}
	return []byte("icc\x00\x00")
}

func appendPNG(b []byte, kind string, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(body))) //nolint:gosec // a chunk of ours, far below 4 GiB
	from := len(b)
	b = append(b, kind...)
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[from:]))
}

// markPNG puts the packet after IHDR, which always takes the first 25 bytes
// behind the signature.
func markPNG(data, packet []byte) []byte {
	const header = len(pngSignature) + 25
	marked := make([]byte, 0, len(data)+len(packet)+64)
	marked = append(marked, data[:header]...)
	marked = appendPNG(marked, "iTXt", append([]byte("XML:com.adobe.xmp\x00\x00\x00\x00\x00"), packet...))
	return append(marked, data[header:]...)
}
