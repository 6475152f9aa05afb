package sink

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestServerTime holds that ClickHouse's time goes on by how much time has passed, whatever our wall clock says.
func TestServerTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC) // far from any clock of ours
		c := &ClickHouse{deadline: 5 * time.Minute, target: &Target{HasDeadline: true, Seen: time.Now(), ServerTime: server}}
		const passed = 20 * time.Second
		time.Sleep(passed) //nolint:forbidigo // on a clock of the test's own
		now, deadline, err := c.Clock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := server.Add(passed); !now.Equal(want) || !deadline.Equal(want.Add(5*time.Minute)) {
			t.Errorf("%s and %s, want %s and five minutes later", now, deadline, want)
		}
	})
}
