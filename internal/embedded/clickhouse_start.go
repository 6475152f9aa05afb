package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// executable is this program, also when its file was replaced or removed, as `go test` does.
const executable = "/proc/self/exe"

// pingTimeout bounds one look whether the server answers.
const pingTimeout = 5 * time.Second

// configuration is the server's. Without users_config it would know no users but a default one with every right.
const configuration = `<clickhouse>
  <users_config>%s</users_config>
%s</clickhouse>
`

// users are the server's: one for clients, and the default one. As default the start-up script logs in, from loopback and always
// without a password. It may have one session, which is the script's, so nobody else can log in as it; and it has no rights but
// those that the script needs. The profilers would interrupt the server's threads with signals that the Go runtime in its process
// does not expect.
const users = `<clickhouse>
  <users>
    <%[4]s>
      <password_sha256_hex>%[1]s</password_sha256_hex>
      <networks><ip>%[5]s</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <access_management>1</access_management>
    </%[4]s>
%[2]s    <default>
      <password></password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>script</profile>
      <quota>default</quota>
      <grants>
        <query>GRANT SYSTEM LISTEN ON *.*</query>
        <query>GRANT SELECT ON system.numbers</query>
      </grants>
    </default>
  </users>
  <profiles>
    <default>
      <query_profiler_real_time_period_ns>0</query_profiler_real_time_period_ns>
      <query_profiler_cpu_time_period_ns>0</query_profiler_cpu_time_period_ns>
%[3]s    </default>
    <script>
      <profile>default</profile>
      <max_sessions_for_user>1</max_sessions_for_user>
    </script>
  </profiles>
  <quotas><default/></quotas>
</clickhouse>
`

// configure writes the configuration.
func (c *ClickHouse) configure() error {
	sum := sha256.Sum256([]byte(c.password))
	digest := hex.EncodeToString(sum[:])
	more, err := c.moreUsers(digest)
	if err != nil {
		return err
	}
	var profile strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.options.Settings)) {
		value, err := escaped(c.options.Settings[name])
		if err != nil {
			return err
		}
		fmt.Fprintf(&profile, "      <%[1]s>%[2]s</%[1]s>\n", name, value)
	}
	text := fmt.Appendf(nil, users, digest, more, profile.String(), c.options.User, c.networks())
	if err := os.WriteFile(c.users(), text, 0o600); err != nil {
		return err
	}
	path, err := escaped(c.users())
	if err != nil {
		return err
	}
	var limits string
	if c.options.MaxMemory > 0 {
		limits = "  <max_server_memory_usage>" + strconv.FormatInt(c.options.MaxMemory, 10) + "</max_server_memory_usage>\n"
	}
	return os.WriteFile(c.config(), fmt.Appendf(nil, configuration, path, limits), 0o600)
}

// networks are those from which clients may come.
func (c *ClickHouse) networks() string {
	if c.options.Anywhere {
		return "::/0"
	}
	return loopback
}

// host is the address that the server listens on.
func (c *ClickHouse) host() string {
	if c.options.Anywhere {
		return "0.0.0.0"
	}
	return loopback
}

// moreUsers are the users that the options ask for.
func (c *ClickHouse) moreUsers(digest string) (string, error) {
	var more strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.options.Users)) {
		var grants strings.Builder
		for _, statement := range c.options.Users[name] {
			query, err := escaped(statement)
			if err != nil {
				return "", err
			}
			grants.WriteString("<query>" + query + "</query>")
		}
		fmt.Fprintf(&more, `    <%[1]s>
      <password_sha256_hex>%[2]s</password_sha256_hex>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <grants>%[3]s</grants>
    </%[1]s>
`, name, digest, grants.String())
	}
	return more.String(), nil
}

// escaped is text as it stands in XML.
func escaped(text string) (string, error) {
	var out strings.Builder
	err := xml.EscapeText(&out, []byte(text))
	return out.String(), err
}

// start starts the server and waits until it answers.
func (c *ClickHouse) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.configure(); err != nil {
		return fmt.Errorf("configure ClickHouse: %w", err)
	}
	s, err := c.spawn(ctx)
	if err != nil {
		return err
	}
	if err := c.ready(ctx, s); err != nil {
		s.kill()
		_ = s.lifeline.Close()
		return fmt.Errorf("start ClickHouse in %s: %w; %s", c.Dir, err, tail(c.log()))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		_ = c.server.lifeline.Close()
	}
	c.server = s
	return nil
}

// spawn starts this executable again, as ClickHouse.
func (c *ClickHouse) spawn(ctx context.Context) (*server, error) {
	log, err := os.OpenFile(c.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	end, lifeline, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = end.Close() }()

	var args []string
	if !c.options.NonInteractive {
		args = append(args, interactive)
	}
	args = append(args, "--config-file="+c.config(), "--path="+c.data(), "--listen_host="+c.host(),
		"--tcp_port="+strconv.Itoa(c.tcpPort), "--http_port="+strconv.Itoa(c.httpPort), "--history_file=/dev/null", "--disable_suggestion")
	// Not killed by ctx: it ends by its lifeline or by kill.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), executable, args...)
	cmd.Args[0] = "clickhouse"
	cmd.Dir = c.Dir
	cmd.Env = []string{childVariable + "=" + c.library, "PATH=/usr/bin:/bin", "HOME=" + c.Dir, "TZ=UTC", "TERM=dumb"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{end}
	p, err := spawn(cmd, die, nil)
	if err != nil {
		_ = lifeline.Close()
		return nil, err
	}
	return &server{process: p, lifeline: lifeline}, nil
}

// ready waits until this very server has answered a query by both protocols.
func (c *ClickHouse) ready(ctx context.Context, s *server) error {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	last := errors.New("it has not taken its data directory")
	for {
		if c.holds(s.cmd.Process.Pid) {
			if last = c.ping(ctx, c.URL("")); last == nil {
				last = c.ping(ctx, c.HTTPURL(""))
			}
			if last == nil && !s.ended() {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-s.done:
			return s.how()
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", errors.Join(ctx.Err(), last))
		}
	}
}

// holds tells whether a process is the server of the data directory. Another server may have it, and answer: the second one
// then ends with exit code 0.
func (c *ClickHouse) holds(pid int) bool {
	status, err := os.ReadFile(filepath.Join(c.data(), "status"))
	return err == nil && strings.HasPrefix(string(status), "PID: "+strconv.Itoa(pid)+"\n")
}

func (c *ClickHouse) ping(ctx context.Context, address string) error {
	options, err := clickhouse.ParseDSN(address)
	if err != nil {
		return err
	}
	// The driver heeds ctx once it is connected.
	options.DialTimeout, options.ReadTimeout = pingTimeout, pingTimeout
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	conn, err := clickhouse.Open(options)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var one uint8
	return conn.QueryRow(ctx, "SELECT 1").Scan(&one)
}
