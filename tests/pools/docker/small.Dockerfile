# One tiny layer, so that pushing it in a test takes no time.
FROM scratch
COPY LICENSE /LICENSE
