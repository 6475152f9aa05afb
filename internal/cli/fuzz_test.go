package cli_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// FuzzSettings holds that settings are in their ranges or refused with code 2, and that no message tells a password.
func FuzzSettings(f *testing.F) {
	f.Add("host/db", "sluicebox", "50000", "16MiB", "1s", "127.0.0.1:8081", "info")
	f.Add("", "", "", "", "", "", "")
	f.Add("@h\"", "Bad-Slot", "0", "1e9PB", "-1s", ":99999", "loud")
	f.Add("%zz", "${DATABASE_URL}", "0x10", "18446744073709551616", "1h", "[::1]:0", "@/etc/passwd")
	f.Fuzz(func(t *testing.T, address, slot, rows, size, delay, admin, level string) {
		const password = "planted-secret"
		s, _, err := parse(t, []string{"run"}, []string{
			"DATABASE_URL=postgres://u:" + password + "@" + address, "CDC_SLOT=" + slot, "CDC_MAX_ROWS=" + rows, "CDC_MAX_BYTES=" + size,
			"CDC_MAX_DELAY=" + delay, "CDC_ADMIN_ADDR=" + admin, "LOG_LEVEL=" + level, "CDC_" + slot + "=x",
		})
		if err == nil {
			if s.MaxRows < 1 || s.MaxRows > 1_000_000 || s.MaxBytes < 64<<10 || s.MaxDelay > time.Minute || !s.AdminAddr.Loopback() || s.Slot == "" {
				t.Errorf("accepted: %+v", s)
			}
			return
		}
		var exit *cli.Exit
		if !errors.As(err, &exit) || exit.Code != cli.CodeSettings || strings.Contains(err.Error()+exit.Hint, password) {
			t.Errorf("error is %v", err)
		}
	})
}
