package pg

import "time"

// Timestamp is a TimestampTz: microseconds since 2000-01-01 00:00:00 UTC.
type Timestamp int64

const epochOffset = 946684800 // seconds from the Unix epoch to PostgreSQL's

// Time converts to the standard library's type, in UTC.
func (t Timestamp) Time() time.Time {
	return time.Unix(epochOffset, 0).Add(0).UTC().Add(time.Duration(int64(t)/1e6) * time.Second).Add(time.Duration(int64(t)%1e6) * time.Microsecond)
}

// TimestampOf converts from the standard library's type, cutting below a microsecond.
func TimestampOf(t time.Time) Timestamp {
	return Timestamp((t.Unix()-epochOffset)*1e6 + int64(t.Nanosecond()/1e3))
}
