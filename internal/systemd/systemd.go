// Package systemd tells systemd how a program is (sd_notify(3)): that it serves, what it is doing, that it still answers, and that it stops.
//
// The watchdog is told only while the program answers the same question over HTTP that Kubernetes would ask it. A program that runs but
// has come to a standstill is then killed and started again by systemd, and one that merely waits for a database is not.
package systemd

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

const (
	// pace is how often systemd is told, unless its watchdog wants to be told more often.
	pace = 10 * time.Second
	// perWatchdog is how often the watchdog is told in its time: one answer may be late, or lost, without a restart.
	perWatchdog = 3
	// answerTimeout bounds a question. Less than pace, so that one that hangs does not hold up the next.
	answerTimeout = 5 * time.Second
	// maxState is the longest state, in bytes, that is passed on. It is one line for people.
	maxState = 500
)

// Health is where a program tells how it is.
type Health struct {
	Live  string // URL that answers 200 as long as starting the program anew would mend nothing
	State string // URL whose answer, whatever its status, is shown by `systemctl status`; may be empty
}

// Notify keeps systemd informed until ctx is done or stop is called, and then tells it that the program stops; stop returns once that is
// done. Where no systemd asks, as everywhere outside of a unit with Type=notify, it does nothing.
func Notify(ctx context.Context, health Health, log zerolog.Logger) (stop func()) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return func() {}
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn().Err(err).Msg("systemd's watchdog is not understood, and will not be told")
	}
	n := &notifier{health: health, log: log, every: pace, client: &http.Client{
		Timeout: answerTimeout,
		// A connection of its own for each question: whether the program still accepts one is part of it.
		Transport: &http.Transport{DisableKeepAlives: true},
	}}
	if watchdog > 0 {
		n.every = min(pace, watchdog/perWatchdog)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

type notifier struct {
	health Health
	log    zerolog.Logger
	client *http.Client
	every  time.Duration
	ready  bool // systemd knows that the program serves
}

func (n *notifier) run(ctx context.Context) {
	tick := time.NewTicker(n.every)
	defer tick.Stop()
	for {
		n.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.tell(daemon.SdNotifyStopping)
			return
		}
	}
}

// look asks the program how it is, and passes that on.
func (n *notifier) look(ctx context.Context) {
	status, _, err := n.ask(ctx, n.health.Live)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("answer %d", status)
	}
	if err != nil {
		if ctx.Err() == nil {
			n.log.Warn().Err(err).Msg("no answer from the health endpoint; systemd's watchdog is not told")
		}
		return
	}
	said := []string{daemon.SdNotifyWatchdog}
	if !n.ready {
		said = append(said, daemon.SdNotifyReady)
	}
	if n.health.State != "" {
		if _, state, err := n.ask(ctx, n.health.State); err == nil {
			said = append(said, "STATUS="+state)
		}
	}
	n.ready = n.tell(said...) || n.ready
}

// ask returns the answer as one line: systemd takes each line for another message.
func (n *notifier) ask(ctx context.Context, url string) (status int, text string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	answer, err := n.client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxState))
	return answer.StatusCode, strings.ToValidUTF8(strings.Join(strings.Fields(string(body)), " "), ""), err
}

func (n *notifier) tell(said ...string) (told bool) {
	told, err := daemon.SdNotify(false, strings.Join(said, "\n"))
	if err != nil {
		n.log.Warn().Err(err).Msg("systemd can't be told how this program is")
	}
	return told
}
