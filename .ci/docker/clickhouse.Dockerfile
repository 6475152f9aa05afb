# Stands in for the official image of ClickHouse; .ci/docker/images lays out root.
FROM scratch
COPY root /
COPY --chown=101:101 empty /var/lib/clickhouse
ENV PATH=/usr/bin:/bin SLUICEBOX_STORES=/opt/stores
VOLUME /var/lib/clickhouse
EXPOSE 8123 9000
USER 101:101
ENTRYPOINT ["/usr/bin/standin"]
