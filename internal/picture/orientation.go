package picture

import (
	"bytes"
	"encoding/binary"
	"image"
)

// An orientation is EXIF's number for how a picture has to be turned to stand
// upright.
type orientation uint16

const (
	upright     orientation = 1
	lastTurn    orientation = 8
	tagOfTurn               = 0x0112
	shortValue              = 3
	entryLength             = 12
)

// orientationOf reads the orientation from EXIF's TIFF structure. Whatever is
// broken or missing means upright.
func orientationOf(tiff []byte) orientation {
	tiff = bytes.TrimPrefix(tiff, []byte("Exif\x00\x00")) // some writers of WebP leave it in
	if len(tiff) < 8 {
		return upright
	}
	var order binary.ByteOrder
	switch string(tiff[:4]) {
	case "II*\x00":
		order = binary.LittleEndian
	case "MM\x00*":
		order = binary.BigEndian
	default:
		return upright
	}
	at := int64(order.Uint32(tiff[4:]))
	if at+2 > int64(len(tiff)) {
		return upright
	}
	entries := tiff[at+2:]
	for range order.Uint16(tiff[at:]) {
		if len(entries) < entryLength {
			break
		}
		if order.Uint16(entries) == tagOfTurn && order.Uint16(entries[2:]) == shortValue {
			if o := orientation(order.Uint16(entries[8:])); o >= upright && o <= lastTurn {
				return o
			}
			break
		}
		entries = entries[entryLength:]
	}
	return upright
}

// turned is img standing upright.
func turned(img image.Image, o orientation) image.Image {
	from := straight(img)
	w, h := from.Rect.Dx(), from.Rect.Dy()
	size := image.Rect(0, 0, w, h)
	if o >= 5 {
		size = image.Rect(0, 0, h, w)
	}
	to := image.NewNRGBA(size)
	for y := range size.Dy() {
		for x := range size.Dx() {
			fx, fy := x, y
			switch o {
			case 2:
				fx = w - 1 - x
			case 3:
				fx, fy = w-1-x, h-1-y
			case 4:
				fy = h - 1 - y
			case 5:
				fx, fy = y, x
			case 6:
				fx, fy = y, h-1-x
			case 7:
				fx, fy = w-1-y, h-1-x
			case 8:
				fx, fy = w-1-y, x
			}
			copy(to.Pix[to.PixOffset(x, y):][:4], from.Pix[from.PixOffset(fx, fy):][:4])
		}
	}
	return to
}
