package doctor

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func hostIllnesses() []illness {
	return []illness{
		{check: "host.memory", seen: "the limit is 67 MB", config: func(c *Config) { c.Host.Memory = 64 << 20 }},
		{check: "host.go_memory_limit", seen: "more than the limit", config: func(c *Config) { c.Host.GoMemory = 2 << 30 }},
		{check: "host.go_memory_limit", seen: "collecting garbage", config: func(c *Config) { c.Host.GoMemory = 48 << 20 }},
		{check: "host.open_files", seen: "64 files", config: func(c *Config) { c.Host.OpenFiles = 64 }},
		{check: "host.clock", seen: "nothing keeps the clock", config: func(c *Config) { c.Host.Clock = ClockAdrift }},
		{check: "clocks.postgres", seen: "of Postgres and of this host are 65 s apart", plant: func(l *look) { l.server.ahead = -65 * time.Second }},
		{check: "clocks.clickhouse", seen: "of ClickHouse and of this host are 3.0 s apart", plant: func(l *look) { l.warehouse.ahead = 3 * time.Second }},
		{check: "clocks.databases", seen: "are 3.0 s apart", plant: func(l *look) { l.server.ahead, l.warehouse.ahead = time.Second, -2*time.Second }},
		{check: "clickhouse.disk", seen: "disk default has 2.1 GB left of 107 GB", plant: func(l *look) { l.target.free, l.target.total, l.target.disk = 2<<30, 100<<30, "default" }},
		{check: "clickhouse.disk", seen: "inserts will be refused", want: Fail, plant: func(l *look) { l.target.free, l.target.total, l.target.disk = 1<<29, 100<<30, "default" }},
	}
}

// TestSecretFiles opens a file to everybody, and closes it as the mend says.
func TestSecretFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "url")
	l := &look{config: Config{SecretFiles: []string{path}}}
	result := func() Result { return judge(t.Context(), "settings.secret_files", l).Result }
	if got := result(); got != OK {
		t.Errorf("a file that is gone: %s", got)
	}
	if err := os.WriteFile(path, []byte("postgres://"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f := judge(t.Context(), "settings.secret_files", l)
	if f.Result != Warn || f.Mend != "chmod o= "+path {
		t.Errorf("%+v", f)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if got := result(); got != OK {
		t.Errorf("a file that is closed: %s", got)
	}
}

func TestGroupLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files map[string]string
		group string
		want  int64
	}{
		"no files":                      {nil, "/", 0},
		"max is no limit":               {map[string]string{"a/memory.max": "max\n"}, "/a", 0},
		"a limit":                       {map[string]string{"a/memory.max": "1048576\n"}, "/a", 1 << 20},
		"a limit of a group above":      {map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "4096\n"}, "/a/b", 4096},
		"the smallest counts":           {map[string]string{"a/b/memory.max": "8192\n", "a/memory.max": "4096\n"}, "/a/b", 4096},
		"the group that is a namespace": {map[string]string{"memory.max": "4096\n"}, "/", 4096},
		"version 1":                     {map[string]string{"memory/memory.limit_in_bytes": "4096\n"}, "", 4096},
		"version 1, no limit":           {map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, "", 0},
	} {
		read := func(path string) (string, error) {
			if text, is := c.files[path]; is {
				return text, nil
			}
			return "", os.ErrNotExist
		}
		if got := groupLimit(read, c.group); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestReadHost(t *testing.T) {
	t.Parallel()
	if host := ReadHost(); host.GoMemory == 0 || host.GoMemory == math.MinInt64 {
		t.Errorf("%+v", host)
	}
}
