package cli

// What the programs need of a system and an image FROM scratch has not. Each is used only where the system has none of its own.
import (
	_ "time/tzdata" // the driver of ClickHouse looks up the server's time zone as it connects

	_ "golang.org/x/crypto/x509roots/fallback" // for TLS to databases whose certificate a public authority has signed
)
