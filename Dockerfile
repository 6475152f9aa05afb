# Both programs, and nothing else: time zones and trusted authorities are in the binaries.
#
#   make image             compiles in a container
#   make image-prebuilt    takes bin/api and bin/cdc as `make build` has left them; no image is fetched
#
#   docker run … sluicebox             the daemon, cdc run
#   docker run … sluicebox cdc status  any of its commands
#   docker run … sluicebox api         the API
#
# It writes no file, so it runs with a read-only root. Settings are environment variables. There is no HEALTHCHECK because the two
# programs have different ones, `cdc health` and `api health`: whoever runs a container names it, as docker-compose.yml does.

ARG GO_IMAGE=golang:1.26

FROM scratch AS programs
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="Sluicebox" \
      org.opencontainers.image.description="Change data capture from a Postgres outbox to ClickHouse, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/usr/local/bin
# A number, because there is no /etc/passwd, and so that Kubernetes can see that it is not root.
USER 65532:65532
CMD ["cdc", "run"]

# Before the next stage, so that a builder that builds stages in their order does not need its image.
FROM programs AS prebuilt
COPY bin/api bin/cdc /usr/local/bin/

FROM ${GO_IMAGE} AS build
WORKDIR /src
# Modules first: they change less often than the code.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
ARG REVISION=
RUN make build VERSION="${VERSION}" REVISION="${REVISION}"

FROM programs
COPY --from=build /src/bin/api /src/bin/cdc /usr/local/bin/
