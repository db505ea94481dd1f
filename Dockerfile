# docs/container.md says how to build and run it. Where HEALTHCHECK is to hold: `docker build`, `buildah build --format docker`.

FROM docker.io/library/python:3.13-slim AS build
# Extras of pyproject.toml, separated by commas: those that a service needs. `analysis` and `charts` are for people.
ARG EXTRAS=kafka,live,redis,tui
WORKDIR /build
RUN python3 -m venv /opt/ingestor
# The dependencies first: a change of the code leaves their layer as it is.
COPY pyproject.toml ./
RUN python3 -c "import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = [extra for extra in sys.argv[1].split(',') if extra]; \
    print(*project['dependencies'], *(one for extra in extras for one in project['optional-dependencies'][extra]), sep='\n')" \
    "$EXTRAS" > requirements.txt \
 && /opt/ingestor/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY . ./
RUN /opt/ingestor/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps . \
 && /opt/ingestor/bin/pip check \
 && /opt/ingestor/bin/pip uninstall --yes --quiet pip

FROM docker.io/library/python:3.13-slim
RUN groupadd --gid 10001 ingestor \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /ingestor --shell /usr/sbin/nologin ingestor \
 && install --directory --owner=ingestor --group=ingestor /ingestor /ingestor/config /ingestor/data
COPY --from=build /opt/ingestor /opt/ingestor
ENV PATH=/opt/ingestor/bin:$PATH \
    INGESTOR_HEALTH_LISTEN=0.0.0.0:9464
# Settings are config/ingestor.yaml and the recording is data/ here, as in a checkout.
WORKDIR /ingestor
USER 10001:10001
VOLUME /ingestor/data
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['INGESTOR_HEALTH_LISTEN'].rpartition(':')[2] + '/healthz', timeout=4)"]
ENTRYPOINT ["ingestor"]
CMD ["run"]
