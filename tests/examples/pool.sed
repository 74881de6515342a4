s/process [0-9]*\./process N./
s/(\([0-9]*\))/(N)/
s/runs [0-9.]* seconds/runs N seconds/
