package picture

import (
	"bytes"
	"encoding/binary"
)

// The markers of a JPEG that matter here.
const (
	sof0  = 0xc0 // baseline
	sof1  = 0xc1 // extended
	sof2  = 0xc2 // progressive
	dht   = 0xc4 // Huffman tables
	rst0  = 0xd0
	rst7  = 0xd7
	soi   = 0xd8
	eoi   = 0xd9
	sos   = 0xda // a scan; its pixels follow the segment
	dqt   = 0xdb // quantization tables
	dri   = 0xdd // restart interval
	app0  = 0xe0 // JFIF
	app1  = 0xe1 // EXIF, XMP
	app14 = 0xee // Adobe
	tem   = 0x01
)

// What is left of the two application segments that tell a decoder whether it
// reads YCbCr, RGB or CMYK: no density, no thumbnail, no flags.
const (
	jfif  = "JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
	adobe = "Adobe\x00\x64\x00\x00\x00\x00" // and the transform's byte
)

// cleanJPEG copies frames, tables and scans. It drops comments, filler, whatever
// comes after the end, and every application segment but the least that says
// which colours these are.
func cleanJPEG(raw []byte) ([]byte, orientation, error) {
	clean := append(make([]byte, 0, len(raw)), 0xff, soi)
	turn := upright
	for i := 2; ; {
		for i < len(raw) && (raw[i] != 0xff || i+1 < len(raw) && (raw[i+1] == 0xff || raw[i+1] == 0)) {
			i++ // filler between segments, which decoders forgive
		}
		if i+1 >= len(raw) {
			return nil, upright, ErrTruncated
		}
		marker := raw[i+1]
		i += 2
		if marker == eoi {
			return append(clean, 0xff, eoi), turn, nil
		}
		if marker >= rst0 && marker <= soi || marker == tem {
			continue // these have no length
		}
		if i+2 > len(raw) {
			return nil, upright, ErrTruncated
		}
		n := int(binary.BigEndian.Uint16(raw[i:]))
		if n < 2 {
			return nil, upright, ErrNotImage
		}
		if i+n > len(raw) {
			return nil, upright, ErrTruncated
		}
		body := raw[i+2 : i+n]
		i += n
		switch marker {
		case sof0, sof1, sof2, dht, dqt, dri:
			clean = appendSegment(clean, marker, body)
		case sos:
			clean = appendSegment(clean, marker, body)
			end := scanEnd(raw, i)
			clean = append(clean, raw[i:end]...)
			i = end
		case app0:
			if bytes.HasPrefix(body, []byte(jfif[:5])) {
				clean = appendSegment(clean, app0, []byte(jfif))
			}
		case app14:
			if len(body) >= 12 && bytes.HasPrefix(body, []byte(adobe[:5])) {
				clean = appendSegment(clean, app14, append([]byte(adobe), body[11]))
			}
		case app1:
			if tiff, ok := bytes.CutPrefix(body, []byte("Exif\x00\x00")); ok {
				turn = orientationOf(tiff)
			}
		}
	}
}

// scanEnd is where the pixels that begin at i end: at the first marker that is
// neither a stuffed 0xff nor a restart.
func scanEnd(raw []byte, i int) int {
	for ; i+1 < len(raw); i++ {
		if raw[i] != 0xff {
			continue
		}
		if next := raw[i+1]; next != 0 && (next < rst0 || next > rst7) {
			return i
		}
	}
	return len(raw)
}

func appendSegment(b []byte, marker byte, body []byte) []byte {
	b = append(b, 0xff, marker)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)+2)) //nolint:gosec // a body was read from, or is checked to fit, 16 bits
	return append(b, body...)
}

// markJPEG puts the packet after the start of the image.
func markJPEG(data, packet []byte) []byte {
	marked := append(make([]byte, 0, len(data)+len(packet)+64), data[:2]...)
	marked = appendSegment(marked, app1, append([]byte(xmpNamespace), packet...))
	return append(marked, data[2:]...)
}
