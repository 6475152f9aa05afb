package ops

import (
	"time"

	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// held is what delivery waits for. It outlasts the tries in between: a daemon that can't connect starts again and again.
type held struct {
	since  time.Time // zero: nothing holds delivery up
	reason string
	by     pipeline.Peer // whom it was that failed; empty: neither
}

func (h *held) enter(state pipeline.State, reason string) {
	switch state {
	case pipeline.Paused:
		if h.since.IsZero() {
			h.since = time.Now()
		}
		h.reason = reason
	case pipeline.Starting:
	case pipeline.Standby, pipeline.Recovering, pipeline.Backfill, pipeline.Streaming, pipeline.Stopped:
		*h = held{}
	default:
		*h = held{}
	}
}
