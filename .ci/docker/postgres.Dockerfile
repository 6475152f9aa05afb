# Stands in for the official image of Postgres 18; .ci/docker/images lays out root.
FROM scratch
COPY root /
COPY --chown=999:999 empty /var/lib/postgresql
COPY --chown=999:999 empty /run/postgresql
ENV PATH=/opt/postgresql/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/18/docker LC_ALL=C
VOLUME /var/lib/postgresql
EXPOSE 5432
STOPSIGNAL SIGINT
USER 999:999
ENTRYPOINT ["/entrypoint"]
CMD ["postgres"]
