package db

import "time"

// SetTimeout is statementTimeout for this database.
func (d *DB) SetTimeout(t time.Duration) { d.timeout = t }
