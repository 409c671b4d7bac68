package objects

import "time"

// AnHourLater lets the next use of the folder sweep its drafts.
func (d *Directory) AnHourLater() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.swept = time.Now().Add(-sweepEvery)
}
